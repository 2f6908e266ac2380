//! `cargo xtask programs`: the guests of `programs/`, tested and made components.

use crate::workspace::{Workspace, run};

/// Runs the tests of what the guests do without a host.
pub(crate) fn test(workspace: &Workspace) -> anyhow::Result<()> {
    run(workspace
        .cargo(["test", "--workspace"])
        .current_dir(workspace.root.join("programs")))
}

/// Makes a component of each guest, in the folder where the tests of the worker look for them.
pub(crate) fn build(workspace: &Workspace) -> anyhow::Result<()> {
    let programs = workspace.root.join("programs");
    for component in realm_program_build::build(&programs, &workspace.programs())? {
        let size = component.size.div_ceil(1024);
        println!("{size:>5} KiB  {}", component.path.display());
    }
    Ok(())
}
