//! Makes components of Rust packages: cargo compiles them for `wasm32-unknown-unknown`, and the
//! description of the interfaces that `realm-program` leaves in each module says how to wrap it.

mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use wit_component::{ComponentEncoder, DecodedWasm};

use crate::toolchain::{TARGET, Toolchain};

/// A component that was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Its file.
    pub path: PathBuf,
    /// Bytes in it.
    pub size: u64,
}

/// Builds, optimised, every `cdylib` of the package in `dir`, or of the workspace, if `dir` has no
/// package. Each becomes a component in the folder `out`, which is made if need be: `NAME.wasm`,
/// by the name of the package, or of the example.
///
/// What cargo says goes where this process's output goes. The error says what is missing or wrong.
pub fn build(dir: &Path, out: &Path) -> anyhow::Result<Vec<Component>> {
    // Asked in `dir`, where rustup may be told to use another toolchain than here.
    let toolchain = Toolchain::find(dir)?;
    let modules = Modules::of(dir, &toolchain)?;
    for args in modules.targets() {
        let mut cargo = toolchain.cargo("build", dir);
        cargo.args(["--release", "--target", TARGET]).args(args);
        let status = cargo.status().context("cannot start cargo")?;
        ensure!(status.success(), "cargo could not build {}", dir.display());
    }
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let mut components = Vec::new();
    for (name, module) in modules.files() {
        let component = fs::read(&module)
            .map_err(anyhow::Error::new)
            .and_then(|module| encode(&module))
            .with_context(|| format!("cannot make a component of {}", module.display()))?;
        let path = out.join(name);
        fs::write(&path, &component).with_context(|| format!("cannot write {}", path.display()))?;
        components.push(Component {
            path,
            size: component.len() as u64,
        });
    }
    Ok(components)
}

/// Wraps a module, with the description of its interfaces in it, into a component.
pub fn encode(module: &[u8]) -> anyhow::Result<Vec<u8>> {
    let component = ComponentEncoder::default()
        .validate(true)
        .module(module)?
        .encode()?;
    // What exports nothing is a component too.
    let exports = match wit_component::decode(&component)? {
        DecodedWasm::Component(resolve, world) => resolve.worlds[world].exports.len(),
        DecodedWasm::WitPackage(..) => 0,
    };
    ensure!(
        exports > 0,
        "it exports no program: end its source in `realm_program::processor!(YourType);` \
         or `realm_program::program!(your_function);`"
    );
    Ok(component)
}

/// What is to be built, by `cargo metadata`.
#[derive(Debug, Deserialize)]
struct Modules {
    packages: Vec<Package>,
    target_directory: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
    crate_types: Vec<String>,
}

impl Modules {
    fn of(dir: &Path, toolchain: &Toolchain) -> anyhow::Result<Self> {
        let output = toolchain
            .cargo("metadata", dir)
            .args(["--no-deps", "--format-version", "1"])
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start cargo")?;
        ensure!(
            output.status.success(),
            "cargo finds no package to build in {}",
            dir.display()
        );
        let mut modules: Modules =
            serde_json::from_slice(&output.stdout).context("cannot read what cargo says")?;
        let manifest = dir
            .canonicalize()
            .with_context(|| format!("cannot find {}", dir.display()))?
            .join("Cargo.toml");
        if modules
            .packages
            .iter()
            .any(|package| package.manifest_path == manifest)
        {
            modules
                .packages
                .retain(|package| package.manifest_path == manifest);
        }
        for package in &mut modules.packages {
            let is_module = |target: &Target| target.crate_types.iter().any(|of| of == "cdylib");
            package.targets.retain(is_module);
        }
        modules
            .packages
            .retain(|package| !package.targets.is_empty());
        if modules.packages.is_empty() {
            bail!(
                "there is no program in {}: a program's package has `crate-type = [\"cdylib\"]` \
                 under `[lib]` in its Cargo.toml",
                dir.display()
            );
        }
        Ok(modules)
    }

    /// The arguments by which cargo builds these targets and no others. It takes libraries and
    /// examples in one call only from packages that have both.
    fn targets(&self) -> Vec<Vec<&str>> {
        self.packages
            .iter()
            .flat_map(|package| {
                let example = |target: &Target| target.is_example();
                package
                    .targets
                    .chunk_by(move |a, b| example(a) == example(b))
                    .map(|targets| {
                        let mut args = vec!["--package", package.name.as_str()];
                        for target in targets {
                            if target.is_example() {
                                args.extend(["--example", target.name.as_str()]);
                            } else {
                                args.push("--lib");
                            }
                        }
                        args
                    })
            })
            .collect()
    }

    /// The file names of the components, and the modules to make them of.
    fn files(&self) -> Vec<(String, PathBuf)> {
        let built = self.target_directory.join(TARGET).join("release");
        let mut files = Vec::new();
        for package in &self.packages {
            for target in &package.targets {
                let file = format!("{}.wasm", target.name.replace('-', "_"));
                files.push(if target.is_example() {
                    let name = format!("{}.wasm", target.name);
                    (name, built.join("examples").join(file))
                } else {
                    (format!("{}.wasm", package.name), built.join(file))
                });
            }
        }
        files
    }
}

impl Target {
    fn is_example(&self) -> bool {
        self.kind.iter().any(|kind| kind == "example")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What cargo says of two packages: a library, and a host's binary with two guests beside it.
    const METADATA: &str = r#"{
        "packages": [
            {"name": "my-guard", "manifest_path": "/a/guard/Cargo.toml", "targets": [
                {"name": "my_guard", "kind": ["cdylib"], "crate_types": ["cdylib"]}]},
            {"name": "more", "manifest_path": "/a/more/Cargo.toml", "targets": [
                {"name": "one-two", "kind": ["example"], "crate_types": ["cdylib"]},
                {"name": "three", "kind": ["example"], "crate_types": ["cdylib"]}]}
        ],
        "target_directory": "/t"
    }"#;

    #[test]
    fn libraries_and_examples_are_built_apart_and_named_as_written() {
        let modules: Modules = serde_json::from_str(METADATA).unwrap();
        assert_eq!(
            modules.targets(),
            [
                vec!["--package", "my-guard", "--lib"],
                vec![
                    "--package",
                    "more",
                    "--example",
                    "one-two",
                    "--example",
                    "three"
                ],
            ]
        );
        let built = Path::new("/t/wasm32-unknown-unknown/release");
        assert_eq!(
            modules.files(),
            [
                ("my-guard.wasm".to_owned(), built.join("my_guard.wasm")),
                (
                    "one-two.wasm".to_owned(),
                    built.join("examples/one_two.wasm")
                ),
                ("three.wasm".to_owned(), built.join("examples/three.wasm")),
            ]
        );
    }

    /// A package that was never built, in a folder of its own.
    fn package(library: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let manifest = format!(
            "[package]\nname = \"some\"\nedition = \"2024\"\n[workspace]\n[lib]\n{library}\n"
        );
        fs::write(dir.path().join("Cargo.toml"), manifest).unwrap();
        fs::create_dir(dir.path().join("src")).unwrap();
        fs::write(dir.path().join("src/lib.rs"), "").unwrap();
        dir
    }

    #[test]
    fn only_what_is_to_be_a_module_is_a_program() {
        let other = package("");
        let error = Modules::of(other.path(), &Toolchain::Ready).unwrap_err();
        assert!(error.to_string().contains("crate-type"), "{error:#}");

        let program = package("crate-type = [\"cdylib\", \"rlib\"]");
        let modules = Modules::of(program.path(), &Toolchain::Ready).unwrap();
        assert_eq!(modules.targets(), [["--package", "some", "--lib"]]);
    }

    #[test]
    fn a_module_without_a_processor_is_refused() {
        let error = encode(b"\0asm\x01\0\0\0").unwrap_err();
        assert!(error.to_string().contains("processor!"), "{error:#}");
    }
}
