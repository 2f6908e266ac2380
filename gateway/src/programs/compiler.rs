//! Compiling components: `realm-worker compile`, a [process](super::process) of its own for each.
//!
//! What a tenant sends is read there alone. The process limits its own memory and processor time;
//! we limit how long it lasts and how much it says.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::Signal;
use realm_shared::control::{USUAL_COMPILE_MEMORY, USUAL_COMPILE_SECONDS};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::Mutex;

use super::Kind;
use super::image::{Draft, Image};
use super::process::{Place, Process, Task};
use crate::stamp::Stamp;

/// How long a compiler may take to say what it is.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of compiled code.
const MOST_OUTPUT: u64 = 256 << 20;
/// Longest line that is read before the code.
const MOST_HEADER: u64 = 4096;
/// Bytes that are kept of what a compiler writes to its standard error.
const MOST_STDERR: usize = 4096;
/// Longest reason that is passed on, in characters.
const MOST_WORDS: usize = 512;

/// What compiling one component may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileLimits {
    /// Seconds of processor time; twice as many of wall time.
    pub seconds: u64,
    /// Bytes of memory.
    pub memory: u64,
}

impl Default for CompileLimits {
    fn default() -> Self {
        CompileLimits {
            seconds: USUAL_COMPILE_SECONDS,
            memory: USUAL_COMPILE_MEMORY,
        }
    }
}

impl CompileLimits {
    /// How long it may take, of whatever the machine does meanwhile.
    fn wall(&self) -> Duration {
        Duration::from_secs(self.seconds.saturating_mul(2))
    }
}

/// A component was not compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The compiler refuses it.
    #[error("{0}")]
    Invalid(String),
    /// It takes too much time or memory.
    #[error("the component takes too much to compile: {0}")]
    Limit(String),
    /// The compiler itself is at fault, or not there.
    #[error("the compiler {}: {what}", .path.display())]
    Broken {
        /// The worker's binary, or the socket where a compiler should listen.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// What code is compiled by and for: only a compiler of the same one makes code that a worker may
/// run. Hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fingerprint(String);

impl Fingerprint {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        let right = (1..=64).contains(&text.len()) && text.bytes().all(hex);
        right.then(|| Fingerprint(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// What became of a component.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) kind: Kind,
    pub(super) fingerprint: Fingerprint,
    pub(super) interfaces: Interfaces,
    pub(super) image: Image,
}

/// What a component imports and exports, as far as it is worth telling.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Interfaces {
    /// Names of interfaces that it imports.
    pub imports: Vec<String>,
    /// Names of what it exports.
    pub exports: Vec<String>,
}

/// What a compiler says before the code.
#[derive(Deserialize)]
struct Header {
    kind: Kind,
    fingerprint: String,
    #[serde(flatten)]
    interfaces: Interfaces,
}

/// The compiler that belongs to a kind of worker.
#[derive(Debug)]
pub struct Compiler {
    place: Place,
    /// How long one component may take.
    wall: Duration,
    /// What it said of itself, when the file at its path was such.
    fingerprint: Mutex<Option<(Stamp, Fingerprint)>>,
}

impl Compiler {
    /// Of a worker's binary, which confines itself when it compiles: as far as the system
    /// lets it, or it compiles nothing if that is not enough for `require_sandbox`.
    pub fn new(binary: PathBuf, limits: CompileLimits, require_sandbox: bool) -> Self {
        let place = Place::Here {
            binary,
            limits,
            require_sandbox,
        };
        Compiler::at(place, limits)
    }

    /// Of whoever runs `realm-worker compile --socket` with this path. Memory and processor time are limited
    /// there.
    pub fn listening(path: PathBuf, limits: CompileLimits) -> Self {
        Compiler::at(Place::Socket(path), limits)
    }

    fn at(place: Place, limits: CompileLimits) -> Self {
        Compiler {
            place,
            wall: limits.wall(),
            fingerprint: Mutex::new(None),
        }
    }

    /// What it compiles for. One that was replaced is asked again.
    pub(super) async fn fingerprint(&self) -> Result<Fingerprint, CompileError> {
        let mut known = self.fingerprint.lock().await;
        // It is on the same machine as we are; a `stat` of it does not wait.
        let metadata = std::fs::metadata(self.place.path()).map_err(|e| self.broken(e))?;
        let stamp = Stamp::of(&metadata);
        if let Some((then, fingerprint)) = &*known
            && *then == stamp
        {
            return Ok(fingerprint.clone());
        }
        let run = tokio::time::timeout(PATIENCE, self.run(Task::Fingerprint, &[])).await;
        let run = run.map_err(|_| self.broken("it does not answer"))?;
        let (said, words, status) = run.map_err(|e| self.broken(e))?;
        let header = match said {
            Said::Code { header, .. } if status.success() => header,
            _ => Vec::new(),
        };
        let said = String::from_utf8_lossy(&header);
        let fingerprint = Fingerprint::parse(said.trim())
            .ok_or_else(|| self.broken(format_args!("it does not tell what it is: {words}")))?;
        *known = Some((stamp, fingerprint.clone()));
        Ok(fingerprint)
    }

    /// Compiles a component. Dropping the future ends the process.
    pub(super) async fn compile(&self, component: Bytes) -> Result<Compiled, CompileError> {
        let run = tokio::time::timeout(self.wall, self.run(Task::Compile, &component)).await;
        let run = run.map_err(|_| {
            CompileError::Limit(format!("it is not done after {} s", self.wall.as_secs()))
        })?;
        let (said, words, status) = run.map_err(|e| self.broken(e))?;
        self.judge(said, &words, status)
    }

    /// Has a process do its task, and hears it out. Whoever does not wait for it ends it.
    async fn run(&self, task: Task, input: &[u8]) -> io::Result<(Said, String, ExitStatus)> {
        converse(self.place.start(task)?, input).await
    }

    fn judge(&self, said: Said, words: &str, status: ExitStatus) -> Result<Compiled, CompileError> {
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal(), said) {
            (_, _, Said::TooMuch) => Err(CompileError::Limit(format!(
                "its code is longer than {MOST_OUTPUT} bytes"
            ))),
            (Some(0), _, Said::Code { header, draft }) => {
                let header: Header = serde_json::from_slice(&header).map_err(|e| {
                    self.broken(format_args!("it says what is not understood: {e}"))
                })?;
                let fingerprint = Fingerprint::parse(&header.fingerprint)
                    .ok_or_else(|| self.broken("it does not tell what it is"))?;
                if draft.bytes() == 0 {
                    return Err(self.broken("it made no code"));
                }
                Ok(Compiled {
                    kind: header.kind,
                    fingerprint,
                    interfaces: header.interfaces,
                    image: draft.seal().map_err(|e| self.broken(e))?,
                })
            }
            (Some(1), _, _) if !words.is_empty() => Err(CompileError::Invalid(words.to_owned())),
            // Its limits end it: SIGXCPU for time; without memory it aborts.
            (_, Some(signal), _) => Err(CompileError::Limit(match Signal::try_from(signal) {
                Ok(Signal::SIGXCPU) => "the compiler ran out of processor time".to_owned(),
                Ok(signal) => format!("the compiler ran out of memory or time ({signal})"),
                Err(_) => format!("the compiler was ended by signal {signal}"),
            })),
            (Some(code), _, _) => Err(self.broken(format_args!("it exited with {code}: {words}"))),
            (None, None, _) => Err(self.broken(status)),
        }
    }

    fn broken(&self, what: impl std::fmt::Display) -> CompileError {
        CompileError::Broken {
            path: self.place.path().to_owned(),
            what: what.to_string(),
        }
    }
}

/// What a compiler wrote to its standard output.
enum Said {
    /// A line and, after it, code; the line is empty where there was none.
    Code { header: Vec<u8>, draft: Draft },
    /// More code than there may be.
    TooMuch,
}

/// Gives a process its input and hears it out: what it said, its last words, and how it ended.
async fn converse(process: Process, input: &[u8]) -> io::Result<(Said, String, ExitStatus)> {
    let Process {
        mut stdin,
        stdout,
        stderr,
        mut end,
    } = process;
    let feed = async move {
        // One that refuses its component may not read all of it.
        let _ = stdin.write_all(input).await;
        Ok(())
    };
    let ((), said, words) = tokio::try_join!(feed, read_code(stdout), read_words(stderr))?;
    if let Said::TooMuch = said {
        end.kill()?;
    }
    let status = end.wait().await?;
    Ok((said, words, status))
}

async fn read_code(stdout: impl AsyncRead + Unpin) -> io::Result<Said> {
    let mut stdout = BufReader::with_capacity(64 << 10, stdout);
    let mut header = Vec::new();
    let mut first = (&mut stdout).take(MOST_HEADER);
    first.read_until(b'\n', &mut header).await?;
    let mut draft = Draft::new()?;
    loop {
        let part = stdout.fill_buf().await?;
        if part.is_empty() {
            return Ok(Said::Code { header, draft });
        }
        if draft.bytes() + part.len() as u64 > MOST_OUTPUT {
            // Its end of the pipe breaks, and so it ends too.
            return Ok(Said::TooMuch);
        }
        draft.write(part)?;
        let read = part.len();
        stdout.consume(read);
    }
}

/// How it begins what it writes there, until its end.
async fn read_words(mut stderr: impl AsyncRead + Unpin) -> io::Result<String> {
    let (mut start, mut chunk) = (Vec::new(), [0; MOST_STDERR]);
    loop {
        let read = stderr.read(&mut chunk).await?;
        if read == 0 {
            return Ok(in_a_line(&start));
        }
        let room = MOST_STDERR - start.len();
        start.extend_from_slice(&chunk[..read.min(room)]);
    }
}

/// A text as it may be shown and logged. It may repeat what a tenant wrote.
fn in_a_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    let shown = line.chars().filter(|c| !c.is_control());
    shown.take(MOST_WORDS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_line_that_can_be_shown() {
        let reason = b"not a component: [\n    0x0,\r\n] \n";
        assert_eq!(in_a_line(reason), "not a component: [ 0x0, ]");
        assert_eq!(in_a_line(b"a\x1b[31m\xff"), "a[31m\u{fffd}");
        assert_eq!(in_a_line(b""), "");
        assert_eq!(in_a_line(&[b'x'; 9999]).len(), MOST_WORDS);
    }

    #[test]
    fn a_fingerprint_is_fit_for_the_name_of_a_file() {
        assert!(Fingerprint::parse("0af9").is_some());
        for bad in ["", "../a", "AF", "g", &"0".repeat(65)] {
            assert_eq!(Fingerprint::parse(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn a_compiler_that_is_not_there_is_named() {
        let compiler = Compiler::new(
            "/no/such/realm-worker".into(),
            CompileLimits::default(),
            false,
        );
        for error in [
            compiler.fingerprint().await.expect_err("not there"),
            compiler.compile(Bytes::new()).await.expect_err("not there"),
        ] {
            assert!(matches!(error, CompileError::Broken { .. }));
            assert!(
                error.to_string().contains("/no/such/realm-worker"),
                "{error}"
            );
        }
    }

    /// What becomes of a compiler that does as the script says.
    async fn puppet(script: &'static str) -> Result<Compiled, CompileError> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/programs/puppet.sh");
        Compiler::new(path.into(), CompileLimits::default(), false)
            .compile(script.into())
            .await
    }

    #[tokio::test]
    async fn code_is_what_follows_the_line() {
        let script = r#"echo '{"kind":"processor","fingerprint":"ab","imports":["i"],"more":1}'; printf 'a\nb'"#;
        let compiled = puppet(script).await.expect("compiles");
        assert_eq!(compiled.fingerprint.as_str(), "ab");
        assert_eq!(compiled.interfaces.imports, ["i"]);
        let mut code = Vec::new();
        let each = |part: &[u8]| {
            code.extend_from_slice(part);
            Ok(())
        };
        compiled.image.read(each).expect("reads");
        assert_eq!(code, b"a\nb");
    }

    #[tokio::test]
    async fn however_a_compiler_ends_it_is_told() {
        let error = |script| async move { puppet(script).await.expect_err(script) };
        let invalid = error("echo 'no good' >&2; exit 1").await;
        assert_eq!(invalid, CompileError::Invalid("no good".into()));
        for (script, what) in [
            ("kill -XCPU $$", "processor time"),
            ("kill -KILL $$", "memory or time"),
            // One that says more than fits in any pipe before it is done.
            ("echo; while :; do cat /bin/sh || exit 1; done", "longer"),
        ] {
            let error = error(script).await;
            let is_limit = matches!(&error, CompileError::Limit(words) if words.contains(what));
            assert!(is_limit, "{script}: {error}");
        }
        for script in [
            "exit 0",
            "exit 1",
            "echo 'help' >&2; exit 2",
            "echo; echo code",
            "echo '{\"kind\":\"other\",\"fingerprint\":\"ab\"}'; echo code",
            "echo '{\"kind\":\"processor\",\"fingerprint\":\"../ab\"}'; echo code",
            "echo '{\"kind\":\"processor\",\"fingerprint\":\"ab\"}'",
            "yes x | tr -d '\\n' | head -c 5000; echo; echo code",
        ] {
            let error = error(script).await;
            assert!(
                matches!(&error, CompileError::Broken { .. }),
                "{script}: {error}"
            );
        }
        // Its complaints do not fill anything, and it may leave its component unread.
        let error =
            error("i=0; while [ $i -lt 9999 ]; do echo 0123456789 >&2; i=$((i+1)); done; exit 1")
                .await;
        assert!(error.to_string().len() <= MOST_WORDS);
    }

    #[tokio::test]
    async fn a_compiler_ends_with_the_request_for_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("pid");
        let script = format!("echo $$ > '{}'; exec sleep 1000", file.display());
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/programs/puppet.sh");
        let compiler = Compiler::new(path.into(), CompileLimits::default(), false);
        let written = async {
            loop {
                let pid = std::fs::read_to_string(&file).unwrap_or_default();
                if let Ok(pid) = pid.trim().parse::<u32>() {
                    return pid;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let pid = tokio::select! {
            _ = compiler.compile(script.into()) => panic!("it sleeps"),
            pid = written => pid,
        };
        let gone = || !std::path::Path::new(&format!("/proc/{pid}")).exists();
        while !gone() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
