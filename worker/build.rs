//! Tells the linker where the binary finds libtorch at run time, so that it starts without any
//! environment variable: beside itself in an installation, or where it was built against. And
//! compiles what calls libtorch in C++.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    // DT_RPATH instead of DT_RUNPATH: it also serves the libraries that libtorch itself loads.
    println!("cargo:rustc-link-arg=-Wl,--disable-new-dtags");
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/torch/lib");
    let mut version = None;
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
        version = torch_version(&Path::new(&libtorch).join("include/torch/headeronly/version.h"));
    }
    compile_shim();
    let version = version.as_deref().unwrap_or("unknown");
    println!("cargo:rustc-env=REALM_LIBTORCH_VERSION={version}");
}

/// With libtorch from where `tch` looks for it too.
fn compile_shim() {
    const SOURCE: &str = "src/cuda/torch.cpp";
    println!("cargo:rerun-if-changed={SOURCE}");
    let libtorch = std::env::var("LIBTORCH").unwrap_or_else(|_| "/usr".into());
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        // libtorch's headers give warnings of their own.
        .warnings(false)
        .include(Path::new(&libtorch).join("include"))
        .file(SOURCE)
        .compile("realm_shim");
}

/// The version that libtorch's headers state, which is what this program is compiled for.
fn torch_version(header: &Path) -> Option<String> {
    println!("cargo:rerun-if-changed={}", header.display());
    let text = std::fs::read_to_string(header).ok()?;
    let part = |name: &str| {
        let prefix = format!("#define TORCH_VERSION_{name} ");
        text.lines()
            .find_map(|line| line.strip_prefix(&prefix))
            .map(str::trim)
    };
    Some(format!(
        "{}.{}.{}",
        part("MAJOR")?,
        part("MINOR")?,
        part("PATCH")?
    ))
}
