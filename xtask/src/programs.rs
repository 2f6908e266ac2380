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

/// Processors that are short and take long to compile, and how deep: a third of a second and 0.7 GB, and more
/// than a compiler may have.
const BOMBS: [(&str, usize); 2] = [("compile-heavy", 300), ("compile-bomb", 1000)];

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
    let attack = workspace.root.join("programs/attacks/table-grow.wat");
    let text =
        fs::read_to_string(&attack).with_context(|| format!("cannot read {}", attack.display()))?;
    components.push(assemble(&workspace.root, "table-grow", &text, &out)?);
    for (name, depth) in BOMBS {
        let text = bomb(depth);
        components.push(assemble(&workspace.root, name, &text, &out)?);
    }
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

/// Makes a component of a processor that is written as text, as it cannot be in Rust.
fn assemble(root: &Path, name: &str, text: &str, out: &Path) -> anyhow::Result<Component> {
    let mut module = wat::parse_str(text).with_context(|| format!("cannot assemble {name}"))?;
    let mut contract = Resolve::default();
    let (package, _) = contract.push_dir(root.join("shared/wit"))?;
    let world = contract.select_world(&[package], Some("processor"))?;
    embed_component_metadata(&mut module, &contract, world, StringEncoding::UTF8)?;
    let bytes = realm_program_build::encode(&module)
        .with_context(|| format!("cannot make a component of {name}"))?;
    let path = out.join(name).with_extension("wasm");
    fs::write(&path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Component {
        path,
        size: bytes.len() as u64,
    })
}

/// Text of a processor that lets the model say what it likes, with a function beside that is never called: so
/// many blocks within one another, each of which leaves a thousand values, and a jump to any of them. A
/// compiler that follows every value to every block needs memory for the product.
fn bomb(depth: usize) -> String {
    const VALUES: usize = 1000;
    let targets: Vec<_> = (0..depth).map(|block| block.to_string()).collect();
    format!(
        r#"(module
          (memory (export "memory") 1)
          (type $many (func (result {many})))
          (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
          (func (export "realm:program/steering@0.1.0#start") (param i32 i32 i32 i32 i32 i32) (result i32)
            (i32.const 0))
          (func (export "realm:program/steering@0.1.0#advance") (param i32 i32) (result i32) (i32.const 0))
          (func (param i32) {blocks} {values} (br_table {targets} (local.get 0)) {ends} {drops}))"#,
        many = "i32 ".repeat(VALUES),
        blocks = "block (type $many) ".repeat(depth),
        values = "local.get 0 ".repeat(VALUES),
        targets = targets.join(" "),
        ends = "end ".repeat(depth),
        drops = "drop ".repeat(VALUES),
    )
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
