//! The files that a worker may read while it loads its model, and the devices that it may use, by Landlock.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use realm_shared::device::Device;

/// The newest interface that this was tried with. An older system does what it can of it.
const NEWEST: ABI = ABI::V7;

/// What the standard library, libtorch and [`memory`](crate::memory) ask the system about
/// processors and memory, and this process about itself. What is not there is left out.
const SYSTEM: [&str; 5] = [
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/self",
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
];

/// What the files of NVIDIA's driver in `/dev` begin with: of the driver, of each GPU, of memory that both sides share,
/// and of parts of a GPU.
const NVIDIA: &str = "nvidia";

/// A ruleset in force.
pub(super) struct Fence {
    version: u32,
    /// What the rules are of. A rule holds for a file as the kernel has it in memory; of those in
    /// `/proc` it makes another when the first was not used for a while, but not of open ones.
    _kept: Vec<PathFd>,
}

impl Fence {
    /// Of Landlock's interface.
    pub(super) fn version(&self) -> u32 {
        self.version
    }
}

/// Allows this thread to read the system's files and a model, to use the devices of a GPU, to open no
/// other file in any way, to use no port, and to signal and call nobody outside.
pub(super) fn fence(model: Option<&Path>, device: Device) -> anyhow::Result<Fence> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let mut kept = Vec::new();
    for path in SYSTEM.map(Path::new) {
        if let Ok(metadata) = fs::metadata(path) {
            let rule = read(path, metadata.is_dir(), &mut kept)?;
            rules = rules.add_rule(rule)?;
        }
    }
    if let Device::Cuda(_) = device {
        for entry in fs::read_dir("/dev").context("cannot list /dev")? {
            let entry = entry.context("cannot list /dev")?;
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(NVIDIA.as_bytes())
            {
                let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
                let access = read_access(folder) | AccessFs::WriteFile | AccessFs::IoctlDev;
                rules = rules.add_rule(rule(&entry.path(), access, &mut kept)?)?;
            }
        }
    }
    // One that is not there is for whoever loads it to complain about.
    if let Some(folder) = model.filter(|folder| folder.is_dir()) {
        rules = rules.add_rule(read(folder, true, &mut kept)?)?;
        // The hub's cache keeps files elsewhere, and links to them in a model's folder.
        let cannot = || format!("cannot read the folder {}", folder.display());
        for entry in fs::read_dir(folder).with_context(cannot)? {
            let entry = entry.with_context(cannot)?;
            let link = entry.file_type().with_context(cannot)?.is_symlink();
            if link && fs::metadata(entry.path()).is_ok_and(|target| target.is_file()) {
                rules = rules.add_rule(read(&entry.path(), false, &mut kept)?)?;
            }
        }
    }
    let status = rules.restrict_self()?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, LandlockStatus::NotEnabled) => {
            bail!("this system has it switched off")
        }
        (RulesetStatus::NotEnforced, _) => bail!("this system has none"),
        (_, LandlockStatus::Available { effective_abi, .. }) => Ok(Fence {
            version: effective_abi as u32,
            _kept: kept,
        }),
        (_, status) => bail!("this system says {status:?}"),
    }
}

fn read<'a>(
    path: &Path,
    folder: bool,
    kept: &'a mut Vec<PathFd>,
) -> anyhow::Result<PathBeneath<&'a PathFd>> {
    rule(path, read_access(folder), kept)
}

fn read_access(folder: bool) -> BitFlags<AccessFs> {
    match folder {
        true => AccessFs::ReadFile | AccessFs::ReadDir,
        false => AccessFs::ReadFile.into(),
    }
}

fn rule<'a>(
    path: &Path,
    access: BitFlags<AccessFs>,
    kept: &'a mut Vec<PathFd>,
) -> anyhow::Result<PathBeneath<&'a PathFd>> {
    kept.push(PathFd::new(path)?);
    let path = kept.last().context("just pushed")?;
    Ok(PathBeneath::new(path, access))
}
