//! What code inside a confined worker can and cannot do.
//!
//! Confinement is for good, so each part of a test that is confined runs in a process of its own:
//! this program again, with the name of an ignored test.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, setns, unshare};
use nix::sys::ptrace;
use nix::sys::signal::kill;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::{Pid, getppid};
use realm_shared::ABI_VERSION;
use realm_shared::control::{Control, MAX_CONTROL_BYTES};
use realm_shared::device::Device;
use realm_shm::{GatewayEnd, Geometry, socket};
use realm_worker::sandbox::confine;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter_all_threads};

/// Far longer than anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Tells a confined part where it may try things.
const FOLDER: &str = "REALM_TEST_FOLDER";
/// Tells it beside which device it is.
const DEVICE: &str = "REALM_TEST_DEVICE";
/// Filters that a worker has which serves.
const FILTERS: &str = "4";

/// Runs a part of a test in a process of its own.
fn run(part: &str, folder: &Path, device: &str) -> Output {
    Command::new(std::env::current_exe().expect("known"))
        .args([part, "--exact", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .env(DEVICE, device)
        .output()
        .expect("starts")
}

fn assert_passes(part: &str, folder: &Path) {
    assert_passes_beside("cpu", part, folder);
}

fn assert_passes_beside(device: &str, part: &str, folder: &Path) {
    let output = run(part, folder, device);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    assert!(said.contains("1 passed"), "there is no part {part}: {said}");
}

fn folder() -> PathBuf {
    PathBuf::from(std::env::var(FOLDER).expect("set by whoever runs this part"))
}

fn device() -> Device {
    let device = std::env::var(DEVICE).expect("set by whoever runs this part");
    device.parse().expect("a device")
}

/// What an attempt came to.
fn outcome<T>(result: Result<T, impl Into<io::Error>>) -> Option<ErrorKind> {
    result.err().map(|error| error.into().kind())
}

/// A folder with files that must stay, a file that a link in it leads to, and one beside it.
fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().expect("temporary directory");
    let model = place.path().join("model");
    fs::create_dir_all(model.join("part")).expect("made");
    for file in ["model/config.json", "model/part/one", "blob", "secret"] {
        fs::write(place.path().join(file), file).expect("written");
    }
    symlink("../blob", model.join("weights")).expect("linked");
    place
}

#[test]
fn code_inside_reaches_nothing() {
    let place = place();
    let socket = place.path().join("socket");
    let _unix = UnixListener::bind(&socket).expect("listens");
    let tcp = TcpListener::bind("127.0.0.1:0").expect("listens");
    let port = tcp.local_addr().expect("known").port();
    fs::write(place.path().join("port"), port.to_string()).expect("written");
    for device in ["cpu", "cuda:0"] {
        assert_passes_beside(device, "intruder", place.path());
    }
    assert_eq!(
        fs::read(place.path().join("secret")).expect("there"),
        b"secret"
    );
    assert!(!place.path().join("new").exists());
    tcp.set_nonblocking(true).expect("a socket");
    assert_eq!(outcome(tcp.accept()), Some(ErrorKind::WouldBlock));
}

#[test]
#[ignore = "confines the process: run by code_inside_reaches_nothing"]
fn intruder() {
    let folder = folder();
    let [secret, new, socket] = ["secret", "new", "socket"].map(|name| folder.join(name));
    let port = fs::read_to_string(folder.join("port")).expect("written");
    let port: u16 = port.parse().expect("a number");
    let namespace = File::open("/proc/self/ns/net").expect("there");
    let open = File::open(&secret).expect("there");
    let parent = getppid();

    let confinement = confine(None, device());
    assert!(confinement.seccomp(), "{confinement}");
    // What a GPU's driver must be let do, Landlock alone keeps to its devices.
    let fenced = confinement.landlock().is_some() || device() == Device::Cpu;
    confinement.seal().expect("sealed");
    let change = File::options().read(true).write(true).open(&secret);
    let change = outcome(change);
    assert_eq!(change, fenced.then_some(ErrorKind::PermissionDenied));

    let mut byte = [0];
    let mut local = [IoSliceMut::new(&mut byte)];
    let remote = [RemoteIoVec { base: 4096, len: 1 }];
    let nothing: Option<&str> = None;
    let tries = BTreeMap::from([
        (
            "a TCP connection",
            outcome(TcpStream::connect(("127.0.0.1", port))),
        ),
        ("a TCP listener", outcome(TcpListener::bind("127.0.0.1:0"))),
        ("a UDP socket", outcome(UdpSocket::bind("127.0.0.1:0"))),
        ("a UDP socket of IPv6", outcome(UdpSocket::bind("[::1]:0"))),
        ("a Unix connection", outcome(UnixStream::connect(&socket))),
        ("a Unix socket", outcome(UnixDatagram::unbound())),
        ("a pair of sockets", outcome(UnixStream::pair())),
        ("reading a file", outcome(File::open(&secret))),
        (
            "reading the system's users",
            outcome(File::open("/etc/passwd")),
        ),
        (
            "reading its own memory",
            outcome(File::open("/proc/self/mem")),
        ),
        ("listing a folder", outcome(fs::read_dir("/"))),
        ("making a file", outcome(File::create(&new))),
        (
            "making one to read and write",
            outcome(
                File::options()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&new),
            ),
        ),
        (
            "making one without a name",
            outcome(tempfile::tempfile_in(&folder)),
        ),
        (
            "cutting a file short",
            outcome(
                File::options()
                    .read(true)
                    .write(true)
                    .truncate(true)
                    .open(&secret),
            ),
        ),
        (
            "adding to a file",
            outcome(File::options().append(true).open(&secret)),
        ),
        ("making a folder", outcome(fs::create_dir(&new))),
        ("renaming", outcome(fs::rename(&secret, &new))),
        ("a link", outcome(fs::hard_link(&secret, &new))),
        ("a symbolic link", outcome(symlink(&secret, &new))),
        ("removing a file", outcome(fs::remove_file(&secret))),
        (
            "removing a folder",
            outcome(fs::remove_dir(folder.join("model/part"))),
        ),
        (
            "changing who may read",
            outcome(open.set_permissions(PermissionsExt::from_mode(0o777))),
        ),
        (
            "another program",
            outcome(Command::new("/bin/true").status()),
        ),
        ("a signal to its parent", outcome(kill(parent, None))),
        (
            "a signal to its group",
            outcome(kill(Pid::from_raw(0), None)),
        ),
        (
            "its parent's processors",
            outcome(sched_setaffinity(parent, &CpuSet::new())),
        ),
        ("tracing its parent", outcome(ptrace::attach(parent))),
        ("being traced", outcome(ptrace::traceme())),
        (
            "its parent's memory",
            outcome(process_vm_readv(parent, &mut local, &remote)),
        ),
        (
            "a namespace of its own",
            outcome(unshare(CloneFlags::CLONE_NEWUSER)),
        ),
        (
            "a namespace of others",
            outcome(setns(namespace, CloneFlags::CLONE_NEWNET)),
        ),
        (
            "a mount",
            outcome(mount(
                nothing,
                "/proc",
                Some("tmpfs"),
                MsFlags::empty(),
                nothing,
            )),
        ),
        ("an io_uring", outcome(io_uring::IoUring::new(4))),
    ]);
    for (what, outcome) in &tries {
        println!("{what}: {outcome:?}");
    }
    let allowed: Vec<_> = tries
        .iter()
        .filter(|(_, outcome)| **outcome != Some(ErrorKind::PermissionDenied))
        .collect();
    assert!(allowed.is_empty(), "{allowed:?}");

    // And what a worker does all the time goes on.
    let answer = std::thread::spawn(|| 6 * 7).join();
    assert_eq!(answer.expect("no panic"), 42);
    let shared = rustix::fs::memfd_create("code", rustix::fs::MemfdFlags::CLOEXEC);
    File::from(shared.expect("memory"))
        .write_all(b"code")
        .expect("written");
    assert!(kill(Pid::this(), None).is_ok());
    let own = sched_getaffinity(Pid::from_raw(0)).expect("known");
    assert!(sched_setaffinity(Pid::from_raw(0), &own).is_ok());
}

#[test]
fn a_model_and_the_system_can_be_read_until_they_are() {
    let place = place();
    for device in ["cpu", "cuda:0"] {
        assert_passes_beside(device, "loader", place.path());
    }
}

#[test]
#[ignore = "confines the process: run by a_model_and_the_system_can_be_read_until_they_are"]
fn loader() {
    let folder = folder();
    let confinement = confine(Some(&folder.join("model")), device());
    if confinement.landlock().is_none() {
        println!("skipped: {confinement}");
        return;
    }
    let read = |path: &Path| fs::read_to_string(path);
    for (file, holds) in [
        ("model/config.json", "model/config.json"),
        ("model/part/one", "model/part/one"),
        ("model/weights", "blob"),
    ] {
        assert_eq!(read(&folder.join(file)).expect(file), holds);
    }
    for file in ["/proc/meminfo", "/proc/self/cgroup", "/proc/cpuinfo"] {
        assert!(read(Path::new(file)).is_ok(), "{file}");
    }
    let denied = Some(ErrorKind::PermissionDenied);
    for other in [&folder.join("secret"), Path::new("/etc/passwd")] {
        assert_eq!(outcome(read(other)), denied, "{}", other.display());
    }
    assert_eq!(outcome(fs::read_dir(&folder)), denied);
    assert_eq!(outcome(File::create(folder.join("model/new"))), denied);
    let append = File::options()
        .append(true)
        .open(folder.join("model/part/one"));
    assert_eq!(outcome(append), denied);
    let change = File::options()
        .read(true)
        .write(true)
        .open(folder.join("model/part/one"));
    assert_eq!(outcome(change), denied);

    // A thread that is there already is sealed too.
    let (sender, sealed) = mpsc::channel();
    let config = folder.join("model/config.json");
    let before = File::open(&config).expect("still");
    let thread = std::thread::spawn({
        let config = config.clone();
        move || sealed.recv().map(|()| outcome(File::open(config)))
    });
    confinement.seal().expect("sealed");
    sender.send(()).expect("it waits");
    assert_eq!(thread.join().expect("no panic"), Ok(denied));
    assert_eq!(outcome(File::open(&config)), denied);
    let mut text = String::new();
    (&before).read_to_string(&mut text).expect("open");
    assert_eq!(text, "model/config.json");
}

#[test]
fn a_drivers_devices_can_be_opened_anew() {
    let place = place();
    for part in ["driver", "driver_without_landlock"] {
        assert_passes_beside("cuda:0", part, place.path());
    }
}

/// In a `/dev` of its own, in which two devices that do nothing stand for that of a driver and another one.
#[test]
#[ignore = "confines the process: run by a_drivers_devices_can_be_opened_anew"]
fn driver() {
    let nothing: Option<&str> = None;
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNS) {
        println!("skipped: no namespace of its own: {error}");
        return;
    }
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(nothing, "/", nothing, private, nothing).expect("private");
    let devices = ["null", "zero"].map(|name| File::open(Path::new("/dev").join(name)));
    let tmpfs = Some("tmpfs");
    mount(nothing, "/dev", tmpfs, MsFlags::empty(), nothing).expect("mounted");
    let [nvidia, other] = ["/dev/nvidia0", "/dev/other"].map(Path::new);
    for (path, device) in [nvidia, other].into_iter().zip(devices) {
        File::create(path).expect("made");
        let device = device.expect("there");
        let hidden = format!("/proc/self/fd/{}", device.as_raw_fd());
        let hidden = Some(hidden.as_str());
        mount(hidden, path, nothing, MsFlags::MS_BIND, nothing).expect("bound");
    }
    let confinement = confine(None, device());
    if confinement.landlock().is_none() {
        println!("skipped: {confinement}");
        return;
    }
    let open = |path: &Path| File::options().read(true).write(true).open(path);
    let denied = Some(ErrorKind::PermissionDenied);
    assert!(open(nvidia).is_ok() && outcome(open(other)) == denied);
    confinement.seal().expect("sealed");
    let device = open(nvidia).expect("still");
    // It knows of no such call, and is asked.
    let asked = rustix::io::ioctl_fionread(&device);
    assert_eq!(asked, Err(rustix::io::Errno::NOTTY));
    assert_eq!(outcome(open(other)), denied);
    assert_eq!(outcome(File::open(nvidia)), denied);
}

#[test]
#[ignore = "confines the process: run by a_drivers_devices_can_be_opened_anew"]
fn driver_without_landlock() {
    lose(libc::SYS_landlock_create_ruleset, libc::EOPNOTSUPP);
    let file = folder().join("secret");
    let confinement = confine(None, device());
    let less = confinement.check(true, |_| {}).expect_err("no Landlock");
    assert!(
        less.to_string().contains("read and write every file"),
        "{less}"
    );
    confinement.seal().expect("sealed");
    let open = File::options().read(true).write(true).open(&file);
    assert!(open.is_ok(), "{open:?}");
    let denied = Some(ErrorKind::PermissionDenied);
    assert_eq!(outcome(File::open(&file)), denied);
    let write = File::options().write(true).open(&file);
    assert_eq!(outcome(write), denied);
    assert_eq!(outcome(tempfile::tempfile_in(folder())), denied);
}

#[test]
fn what_is_missing_is_told_or_refused() {
    let place = place();
    for part in ["without_landlock", "without_seccomp"] {
        assert_passes(part, place.path());
    }
}

#[test]
#[ignore = "changes the process: run by what_is_missing_is_told_or_refused"]
fn without_landlock() {
    lose(libc::SYS_landlock_create_ruleset, libc::EOPNOTSUPP);
    serve_without("without Landlock", "5");
}

#[test]
#[ignore = "changes the process: run by what_is_missing_is_told_or_refused"]
fn without_seccomp() {
    lose(libc::SYS_seccomp, libc::ENOSYS);
    serve_without("without seccomp", "1");
}

/// Has this process, and those that it starts, be on a kernel without a call.
fn lose(call: libc::c_long, errno: i32) {
    let rules = BTreeMap::from([(call, Vec::new())]);
    let deny = SeccompAction::Errno(errno as u32);
    let architecture = std::env::consts::ARCH.try_into().expect("known");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, deny, architecture);
    let program = BpfProgram::try_from(filter.expect("a filter")).expect("short");
    apply_filter_all_threads(&program).expect("installed");
}

/// A worker that lacks something serves, after a warning; not if that is required.
fn serve_without(what: &str, filters: &str) {
    let (mut worker, socket) = start(&[]);
    assert!(matches!(last_word(&socket), Control::Ready(_)));
    // The one that takes the call away, and the worker's own where it can have some.
    let has = status(worker.id(), worker.id(), "Seccomp_filters");
    assert_eq!(has, filters, "{what}");
    drop(socket);
    let log = end(&mut worker);
    assert!(log.contains("warning") && log.contains(what), "{log}");

    let (mut worker, socket) = start(&["--require-sandbox"]);
    let Control::Failed { message } = last_word(&socket) else {
        panic!("it serves");
    };
    assert!(
        message.contains("--require-sandbox") && message.contains(what),
        "{message}"
    );
    drop(socket);
    assert!(end(&mut worker).contains(what));
}

/// A worker of the embedded model that shook hands, and its socket.
fn start(more: &[&str]) -> (Child, rustix::fd::OwnedFd) {
    let (ours, theirs) = socket::pair().expect("sockets");
    let worker = Command::new(env!("CARGO_BIN_EXE_realm-worker"))
        .args([
            "serve",
            "--fd",
            "0",
            "--model",
            "embedded",
            "--threads",
            "2",
        ])
        .args(["--kv-memory", "4194304"])
        .args(more)
        .stdin(Stdio::from(theirs))
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let ring = GatewayEnd::create(7, &Geometry::default(), ABI_VERSION).expect("memory");
    ring.offer(ours.as_fd(), PATIENCE)
        .expect("the worker answers");
    (worker, ours)
}

/// What a worker says when it is ready, or cannot be.
fn last_word(socket: &rustix::fd::OwnedFd) -> Control {
    let mut bytes = [0; MAX_CONTROL_BYTES];
    loop {
        let len = socket::recv(socket.as_fd(), &mut bytes).expect("a message");
        match serde_json::from_slice(&bytes[..len]).expect("a control message") {
            Control::Loading { .. } => {}
            word => return word,
        }
    }
}

/// Waits for a worker to end; its log.
fn end(worker: &mut Child) -> String {
    let mut log = String::new();
    let mut stderr = worker.stderr.take().expect("piped");
    stderr.read_to_string(&mut log).expect("text");
    worker.wait().expect("ends");
    log
}

/// A line of what the system says of a thread.
fn status(pid: u32, thread: u32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")).unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let line = lines.find(|(name, _)| *name == key);
    line.map(|(_, value)| value.trim().to_owned())
        .unwrap_or_default()
}

#[test]
fn a_compiler_is_confined_before_it_reads() {
    let mut compiler = Command::new(env!("CARGO_BIN_EXE_realm-worker"))
        .arg("compile")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    // It waits for its component.
    let begun = Instant::now();
    while status(compiler.id(), compiler.id(), "Seccomp_filters") != FILTERS {
        let ended = compiler.try_wait().expect("can wait");
        assert!(ended.is_none() && begun.elapsed() < PATIENCE, "{ended:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut stdin = compiler.stdin.take().expect("piped");
    stdin.write_all(b"no component").expect("written");
    drop(stdin);
    assert!(end(&mut compiler).contains("no component"));
}
