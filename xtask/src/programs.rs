//! `cargo xtask programs`: the guests of `programs/`, tested and made components.

use std::fs;
use std::path::Path;

use anyhow::Context;
use realm_program_build::Component;
use wit_component::{StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::workspace::{Workspace, run};

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
    for component in components {
        let size = component.size.div_ceil(1024);
        println!("{size:>5} KiB  {}", component.path.display());
    }
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
