//! The system calls that a worker does without, by seccomp.
//!
//! A list of what is denied, not of what is allowed. The calls that libc, libtorch and a driver
//! make change with their versions, and one that is missing from a list would end streams in the
//! middle; what an intruder is after changes rarely. What a list of denials cannot foresee, calls
//! that newer kernels have, is denied by number.
//!
//! A denied call fails with `EPERM`, as without the right to make it, and kills nobody: libraries
//! try calls to find out what there is, and have an answer ready. Those for which they have one
//! only where a kernel lacks the call fail as if it did.

use std::collections::BTreeMap;

use anyhow::Context;
use libc::c_long;
use realm_shared::device::Device;
use rustix::process::getpid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads, sock_filter,
};

/// A call is denied if one of its rules holds, or always if it has none. A rule holds if all of
/// its conditions do.
type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// The first number of a call that Linux 6.18 does not have. Numbers are the same on all processors
/// from 424 on.
const UNKNOWN: u32 = 470;

/// Calls below it that libc has no names for yet.
const SETXATTRAT: c_long = 463;
const REMOVEXATTRAT: c_long = 466;
const OPEN_TREE_ATTR: c_long = 467;
const FILE_SETATTR: c_long = 469;
/// The same of requests to `ioctl`: who is sent a signal when a descriptor has something.
const FIOSETOWN: u64 = 0x8901;
const SIOCSPGRP: u64 = 0x8902;
/// And of commands to `fcntl`.
const F_SETSIG: u64 = 10;
const F_SETOWN_EX: u64 = 15;

/// Denied whatever its arguments are.
#[rustfmt::skip]
const DENIED: &[c_long] = &[
    // The network, and other processes through sockets. What the gateway calls through is open.
    libc::SYS_socket, libc::SYS_socketpair, libc::SYS_connect, libc::SYS_bind, libc::SYS_listen,
    // Other programs.
    libc::SYS_execve, libc::SYS_execveat,
    // Other processes: their memory, descriptors and signals. For `kill` see below.
    libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev,
    libc::SYS_process_madvise, libc::SYS_process_mrelease, libc::SYS_kcmp,
    libc::SYS_pidfd_open, libc::SYS_pidfd_getfd, libc::SYS_pidfd_send_signal,
    libc::SYS_tkill, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_move_pages, libc::SYS_migrate_pages,
    libc::SYS_sched_setscheduler, libc::SYS_sched_setparam, libc::SYS_sched_setattr,
    libc::SYS_ioprio_set,
    // Memory and queues that processes share by name.
    libc::SYS_shmget, libc::SYS_shmat, libc::SYS_shmctl, libc::SYS_msgget, libc::SYS_msgsnd,
    libc::SYS_msgrcv, libc::SYS_msgctl, libc::SYS_semget, libc::SYS_semop, libc::SYS_semtimedop,
    libc::SYS_semctl, libc::SYS_mq_open, libc::SYS_mq_unlink,
    // Files: changing what there is. For `open` see below.
    libc::SYS_unlinkat, libc::SYS_mkdirat, libc::SYS_mknodat, libc::SYS_linkat,
    libc::SYS_symlinkat, libc::SYS_renameat2, libc::SYS_truncate, libc::SYS_fchmodat,
    libc::SYS_fchmodat2, libc::SYS_fchmod, libc::SYS_fchownat, libc::SYS_fchown,
    libc::SYS_utimensat, libc::SYS_setxattr, libc::SYS_lsetxattr, libc::SYS_fsetxattr,
    libc::SYS_removexattr, libc::SYS_lremovexattr, libc::SYS_fremovexattr,
    SETXATTRAT, REMOVEXATTRAT, FILE_SETATTR,
    libc::SYS_name_to_handle_at, libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init, libc::SYS_inotify_init1,
    // What the file system looks like.
    libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root, libc::SYS_chroot,
    libc::SYS_move_mount, libc::SYS_fsopen, libc::SYS_fsconfig, libc::SYS_fsmount,
    libc::SYS_fspick, libc::SYS_open_tree, OPEN_TREE_ATTR, libc::SYS_mount_setattr, libc::SYS_quotactl,
    libc::SYS_quotactl_fd, libc::SYS_swapon, libc::SYS_swapoff,
    // Namespaces and identities.
    libc::SYS_unshare, libc::SYS_setns, libc::SYS_setuid, libc::SYS_setgid, libc::SYS_setreuid,
    libc::SYS_setregid, libc::SYS_setresuid, libc::SYS_setresgid, libc::SYS_setgroups,
    libc::SYS_setfsuid, libc::SYS_setfsgid, libc::SYS_capset, libc::SYS_personality,
    // Large parts of the kernel that nobody here needs, in which there have been holes.
    libc::SYS_bpf, libc::SYS_perf_event_open, libc::SYS_userfaultfd, libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter, libc::SYS_io_uring_register, libc::SYS_io_setup,
    libc::SYS_io_submit, libc::SYS_vmsplice, libc::SYS_keyctl, libc::SYS_add_key,
    libc::SYS_request_key,
    // The machine.
    libc::SYS_reboot, libc::SYS_kexec_load, libc::SYS_init_module, libc::SYS_finit_module,
    libc::SYS_delete_module, libc::SYS_acct, libc::SYS_syslog, libc::SYS_sethostname,
    libc::SYS_setdomainname, libc::SYS_settimeofday, libc::SYS_clock_settime,
    libc::SYS_clock_adjtime, libc::SYS_adjtimex,
];

/// Older names of calls above, which this processor still has, and what else only it has.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const DENIED_HERE: &[c_long] = &[
    libc::SYS_fork, libc::SYS_vfork, libc::SYS_unlink, libc::SYS_rmdir, libc::SYS_mkdir,
    libc::SYS_mknod, libc::SYS_link, libc::SYS_symlink, libc::SYS_rename, libc::SYS_renameat,
    libc::SYS_creat, libc::SYS_chmod, libc::SYS_chown, libc::SYS_lchown, libc::SYS_utime,
    libc::SYS_utimes, libc::SYS_futimesat, libc::SYS_inotify_init, libc::SYS_kexec_file_load,
    libc::SYS_ioperm, libc::SYS_iopl, libc::SYS_modify_ldt, libc::SYS_uselib,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[c_long] = &[libc::SYS_renameat, libc::SYS_kexec_file_load];

/// Calls that a filter cannot judge, as their arguments lie in memory. libc makes threads with an
/// older call where the system lacks this one, and nobody opens files with it here.
const ABSENT: [c_long; 2] = [libc::SYS_clone3, libc::SYS_openat2];

/// What opens a file, and which of its arguments says how.
#[cfg(target_arch = "x86_64")]
const OPENS: &[(c_long, u8)] = &[(libc::SYS_openat, 2), (libc::SYS_open, 1)];
#[cfg(not(target_arch = "x86_64"))]
const OPENS: &[(c_long, u8)] = &[(libc::SYS_openat, 2)];

/// Takes all of that from all threads of this process.
pub(super) fn restrict(device: Device) -> anyhow::Result<()> {
    let mut rules: Rules = DENIED
        .iter()
        .chain(DENIED_HERE)
        .map(|call| (*call, Vec::new()))
        .collect();
    rules.extend(conditional(device)?);
    install(&compile(rules, libc::EPERM)?)?;
    let absent = ABSENT.map(|call| (call, Vec::new()));
    install(&compile(absent.into(), libc::ENOSYS)?)?;
    install(&known_only())
}

/// Takes from all threads the opening of files, but as a GPU's driver opens its devices: for reading and writing.
pub(super) fn seal(device: Device) -> anyhow::Result<()> {
    let how = |argument| match device {
        Device::Cpu => Ok(Vec::new()),
        // Those that write and do not read are denied by now.
        Device::Cuda(_) => {
            let reading = has_of(argument, libc::O_ACCMODE, libc::O_RDONLY)?;
            anyhow::Ok(vec![SeccompRule::new(vec![reading])?])
        }
    };
    let rules = OPENS
        .iter()
        .map(|(call, argument)| Ok((*call, how(*argument)?)));
    let rules = rules.collect::<anyhow::Result<_>>()?;
    install(&compile(rules, libc::EPERM)?)
}

/// That an argument has these of some bits.
fn has_of(argument: u8, of: i32, bits: i32) -> anyhow::Result<SeccompCondition> {
    let operator = SeccompCmpOp::MaskedEq(of as u64);
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, bits as u64);
    Ok(condition?)
}

/// Calls that are denied for some arguments.
fn conditional(device: Device) -> anyhow::Result<Rules> {
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    let own = u64::try_from(getpid().as_raw_nonzero().get()).context("a process id")?;
    let when = |argument, operator, value| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
    };
    let process = u64::from(libc::PRIO_PROCESS);
    let thread = libc::CLONE_THREAD as u64;
    let mut rules: BTreeMap<c_long, Vec<Vec<_>>> = BTreeMap::from([
        // Signals go to this process alone, which ends itself with them.
        (libc::SYS_kill, vec![vec![when(0, Ne, own)?]]),
        (libc::SYS_tgkill, vec![vec![when(0, Ne, own)?]]),
        // Limits are its own, and so is its priority.
        (
            libc::SYS_prlimit64,
            vec![vec![when(0, Ne, 0)?, when(0, Ne, own)?]],
        ),
        (
            libc::SYS_setpriority,
            vec![vec![when(0, Ne, process)?], vec![when(1, Ne, 0)?]],
        ),
        // Threads choose their own processors, and nobody else's.
        (libc::SYS_sched_setaffinity, vec![vec![when(0, Ne, 0)?]]),
        // Threads can be made, processes cannot.
        (libc::SYS_clone, vec![vec![when(0, MaskedEq(thread), 0)?]]),
        // The kernel sends no signals to others either, when a descriptor has something.
        (
            libc::SYS_fcntl,
            vec![
                vec![when(1, Eq, libc::F_SETOWN as u64)?],
                vec![when(1, Eq, F_SETOWN_EX)?],
                vec![when(1, Eq, F_SETSIG)?],
            ],
        ),
        // Nothing is typed into the terminal that the log may go to.
        (
            libc::SYS_ioctl,
            vec![
                vec![when(1, Eq, FIOSETOWN)?],
                vec![when(1, Eq, SIOCSPGRP)?],
                vec![when(1, Eq, libc::TIOCSTI)?],
                vec![when(1, Eq, libc::TIOCLINUX)?],
            ],
        ),
    ]);
    // Files can be read, not written. Devices of a GPU are both, and neither made nor cut short.
    let mut writing = vec![
        libc::O_WRONLY,
        libc::O_CREAT,
        libc::O_TMPFILE,
        libc::O_TRUNC,
    ];
    if device == Device::Cpu {
        writing.push(libc::O_RDWR);
    }
    for (call, how) in OPENS {
        let each = writing
            .iter()
            .map(|flag| anyhow::Ok(vec![has_of(*how, *flag, *flag)?]));
        rules.insert(*call, each.collect::<anyhow::Result<_>>()?);
    }
    let rule = |conditions| SeccompRule::new(conditions).context("a rule");
    rules
        .into_iter()
        .map(|(call, any)| Ok((call, any.into_iter().map(rule).collect::<Result<_, _>>()?)))
        .collect()
}

fn compile(rules: Rules, errno: i32) -> anyhow::Result<BpfProgram> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let deny = SeccompAction::Errno(errno.unsigned_abs());
    // Who calls as a 32-bit program, in which numbers mean other calls, is killed by it.
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, deny, architecture)?;
    Ok(filter.try_into()?)
}

/// Has calls be absent that newer kernels have, and those of the x32 interface, which are denied
/// ones under numbers from 2^30 on.
fn known_only() -> BpfProgram {
    let instruction = |code: u32, jt, jf, k| sock_filter {
        // All codes of this machine are less than 256.
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load_number = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let if_at_least = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    let end = libc::BPF_RET | libc::BPF_K;
    let absent = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    vec![
        instruction(load_number, 0, 0, 0),
        instruction(if_at_least, 0, 1, UNKNOWN),
        instruction(end, 0, 0, absent),
        instruction(end, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

fn install(program: &BpfProgram) -> anyhow::Result<()> {
    Ok(apply_filter_all_threads(program)?)
}
