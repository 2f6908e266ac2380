//! `realm program`

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::Method;
use jiff::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::IgnoredAny;

use super::check;
use super::client::{Client, JSON, WASM};
use super::component::{CompilerArgs, read};
use crate::api::{ProgramList, ProgramObject};
use crate::config::{File, ProgramSettings};
use crate::programs::{CompileLimits, Compiler, ProgramName, Programs, Push};
use crate::tenants::ANYONE;
use crate::workers::default_binary;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make components of a Rust package that is written with `realm-program`
    Build(Build),
    /// Compile a component and store it, in the place of the one of its name
    Push(PushArgs),
    /// Show what a tenant has stored
    List(List),
    /// Remove a program; requests that use it go on
    Rm(Remove),
    /// Compile a component and try it, and say what it is or what is wrong with it
    Check(check::Args),
}

#[derive(Debug, clap::Args)]
pub(super) struct Build {
    /// Folder of the package, or of a workspace
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Folder to put the components in
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

/// Where programs are: in a folder, or with a running server.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// Folder of the programs [default: `programs` of the config file]
    #[arg(long, env = "REALM_PROGRAMS_DIR", value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Whose programs, in a folder [default: anyone, who everybody is where there are no keys]
    #[arg(long, value_name = "ID", conflicts_with = "url")]
    tenant: Option<String>,
    /// Instead of a folder, the API of a running server, such as http://127.0.0.1:8080/v1
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// API key of the tenant, where the server asks for one
    #[arg(
        long,
        env = "REALM_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    key: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct PushArgs {
    /// A WebAssembly component
    file: PathBuf,
    /// What it is to be called
    #[arg(long)]
    name: ProgramName,
    /// Model that it is made for [default: any]
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    compiler: CompilerArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    place: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Remove {
    /// Its name
    name: ProgramName,
    #[command(flatten)]
    place: Place,
}

pub(super) async fn program(command: Command, file: File) -> anyhow::Result<ExitCode> {
    match command {
        Command::Build(args) => build(&args),
        Command::Push(args) => push(args, &file).await,
        Command::List(args) => list(args, &file).await,
        Command::Rm(args) => remove(args, &file).await,
        Command::Check(args) => check::check(args, &file).await,
    }
}

/// The programs that a command is about.
enum Found {
    /// In a folder, of a tenant.
    Folder(Programs, String),
    /// With a running server, of whoever has the key.
    Server(Client),
}

impl Place {
    fn find(self, file: &File, compiler: Compiler) -> anyhow::Result<Found> {
        if let Some(url) = self.url {
            return Ok(Found::Server(Client::api(&url, self.key)?));
        }
        let flags = ProgramSettings {
            programs: self.dir,
            ..ProgramSettings::default()
        };
        let folder = flags.resolve(file.programs.clone())?.context(
            "which programs? Give --dir, or `programs` in the file of --config, or --url of a running server",
        )?;
        let tenant = self.tenant.unwrap_or_else(|| ANYONE.to_owned());
        if tenant.is_empty() {
            bail!("--tenant is empty: name the tenant whose programs are meant");
        }
        let programs = Programs::open(&folder.dir, compiler, folder.most_bytes)?;
        Ok(Found::Folder(programs, tenant))
    }
}

fn build(args: &Build) -> anyhow::Result<ExitCode> {
    for component in realm_program_build::build(&args.dir, &args.out)? {
        println!("{} ({} bytes)", component.path.display(), component.size);
    }
    Ok(ExitCode::SUCCESS)
}

async fn push(args: PushArgs, file: &File) -> anyhow::Result<ExitCode> {
    let component = read(&args.file)?;
    let PushArgs {
        name, base, place, ..
    } = args;
    let stored: ProgramObject = match place.find(file, args.compiler.find(file)?)? {
        Found::Folder(programs, tenant) => {
            let most = file.tenants.of(&tenant).most_programs();
            let push = Push {
                name,
                base,
                component,
            };
            programs.push(&tenant, most, push).await?.into()
        }
        Found::Server(server) => {
            let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
            let mut path = format!("/programs?name={}", encode(name.as_str()));
            if let Some(base) = base {
                path += &format!("&base={}", encode(&base));
            }
            server.call(Method::POST, &path, WASM, component).await?
        }
    };
    writeln!(std::io::stdout(), "{} {}", stored.id, stored.digest)?;
    Ok(ExitCode::SUCCESS)
}

/// For what compiles nothing.
fn unused_compiler() -> Compiler {
    Compiler::new(default_binary(), CompileLimits::default(), false)
}

async fn list(args: List, file: &File) -> anyhow::Result<ExitCode> {
    let programs: ProgramList = match args.place.find(file, unused_compiler())? {
        Found::Folder(programs, tenant) => programs.list(&tenant).await?.into(),
        Found::Server(server) => {
            let list = server.call(Method::GET, "/programs", JSON, Bytes::new());
            list.await?
        }
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        let programs = serde_json::to_value(programs.data)?;
        writeln!(out, "{programs:#}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let names = programs.data.iter().map(|program| program.id.len());
    let names = names.max().unwrap_or(0).max("NAME".len());
    writeln!(
        out,
        "{:names$}  {:9}  {:20}  {:>8}  {:71}  BASE",
        "NAME", "KIND", "CREATED", "BYTES", "DIGEST"
    )?;
    for program in programs.data {
        let created = Timestamp::from_second(program.created).unwrap_or_default();
        writeln!(
            out,
            "{:names$}  {:9}  {}  {:>8}  {}  {}",
            program.id,
            program.kind,
            created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            program.bytes,
            program.digest,
            program.base.as_deref().unwrap_or("any"),
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn remove(args: Remove, file: &File) -> anyhow::Result<ExitCode> {
    match args.place.find(file, unused_compiler())? {
        Found::Folder(programs, tenant) => {
            programs.remove(&tenant, args.name.as_str()).await?;
        }
        Found::Server(server) => {
            let path = format!("/programs/{}", args.name);
            let gone = server.call(Method::DELETE, &path, JSON, Bytes::new());
            let IgnoredAny = gone.await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
