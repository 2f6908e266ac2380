//! `cargo xtask programs`: the guests of `programs/`, tested and made components.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use realm_program_build::Component;
use wit_component::{StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::npm;
use crate::workspace::{Workspace, run};

/// Guests in JavaScript, and the worlds that they are written for.
const JAVASCRIPT: [(&str, &str); 2] = [("fill", "program"), ("pick", "processor")];

/// What makes them keep to the contract: calls that return when they are done, and no `wasi:` interface left.
/// The last one trades speed for a third of the size.
const QUICKJS: [&str; 3] = ["--sync", "--stub-wasi", "--opt-size"];

/// Runs the tests of what the guests do without a host.
pub(crate) fn test(workspace: &Workspace) -> anyhow::Result<()> {
    run(workspace
        .cargo(["test", "--workspace"])
        .current_dir(workspace.root.join("programs")))
}

/// Makes a component of each guest, in the folder where the tests of the worker look for them.
pub(crate) fn build(workspace: &Workspace) -> anyhow::Result<()> {
    let out = workspace.programs();
    let mut components = realm_program_build::build(&workspace.root.join("programs"), &out)?;
    components.push(assemble(&workspace.root, "table-grow", &out)?);
    components.extend(javascript(workspace, &out)?);
    for component in components {
        let size = component.size.div_ceil(1024);
        println!("{size:>5} KiB  {}", component.path.display());
    }
    Ok(())
}

/// Puts the built `chat` where the gateway takes it from.
pub(crate) fn build_in(workspace: &Workspace) -> anyhow::Result<()> {
    let from = workspace.programs().join("chat.wasm");
    let to = workspace.root.join("gateway/src/programs/chat.wasm");
    fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// Makes a component of an attack that is written as text, as it cannot be in Rust.
fn assemble(root: &Path, name: &str, out: &Path) -> anyhow::Result<Component> {
    let text = root
        .join("programs/attacks")
        .join(name)
        .with_extension("wat");
    let mut module = wat::parse_file(&text)?;
    let mut contract = Resolve::default();
    let (package, _) = contract.push_dir(root.join("shared/wit"))?;
    let world = contract.select_world(&[package], Some("processor"))?;
    embed_component_metadata(&mut module, &contract, world, StringEncoding::UTF8)?;
    let bytes = realm_program_build::encode(&module)
        .with_context(|| format!("cannot make a component of {}", text.display()))?;
    let path = out.join(name).with_extension("wasm");
    fs::write(&path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Component {
        path,
        size: bytes.len() as u64,
    })
}

/// Makes components of the guests in JavaScript, those alone whose source changed. None where Node.js is missing,
/// which nothing else here needs.
fn javascript(workspace: &Workspace, out: &Path) -> anyhow::Result<Vec<Component>> {
    if let Err(missing) = npm::check("programs in JavaScript") {
        println!("programs in JavaScript are left out: {missing:#}");
        return Ok(Vec::new());
    }
    let source = workspace.root.join("programs/examples/javascript");
    let contract = workspace.root.join("shared/wit");
    let packages = workspace.target.join("javascript");
    npm::install(&packages, &source)?;
    // How it is made is a part of what it is made of.
    let mut common = format!("{}\n", QUICKJS.join(" ")).into_bytes();
    for file in [source.join("package-lock.json"), contract.join("realm.wit")] {
        common.extend(fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    let mut components = Vec::new();
    for (name, world) in JAVASCRIPT {
        let script = source.join(name).with_extension("js");
        let text =
            fs::read(&script).with_context(|| format!("cannot read {}", script.display()))?;
        let made_of = [common.as_slice(), &text].concat();
        let path = out.join(name).with_extension("wasm");
        let stamp = packages.join(name).with_extension("made-of");
        if !path.is_file() || fs::read(&stamp).ok().as_ref() != Some(&made_of) {
            let tool = packages.join("node_modules/.bin/componentize-qjs");
            let output = Command::new(&tool)
                .arg("--wit")
                .arg(&contract)
                .args(["--world", world])
                .args(QUICKJS)
                .arg("--js")
                .arg(&script)
                .arg("--output")
                .arg(&path)
                .current_dir(&source)
                .stdin(Stdio::null())
                .output()
                .with_context(|| format!("cannot start {}", tool.display()))?;
            if !output.status.success() {
                bail!(
                    "cannot make a component of {}: {}",
                    script.display(),
                    String::from_utf8_lossy(&output.stderr).trim()
                );
            }
            fs::write(&stamp, &made_of)
                .with_context(|| format!("cannot write {}", stamp.display()))?;
        }
        let size = fs::metadata(&path)
            .with_context(|| format!("cannot find {}", path.display()))?
            .len();
        components.push(Component { path, size });
    }
    Ok(components)
}
