use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use realm_shared::device::Device;
use realm_shared::wire::Allotment;

use super::*;

fn read(text: &str) -> Result<File, String> {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("realm.toml");
    std::fs::write(&path, text).expect("writes");
    File::read(Some(&path)).map_err(|e| e.to_string())
}

#[test]
fn a_flag_beats_the_file_and_the_file_beats_the_default() {
    let f = read("[server]\nport = 1\nmax_body_bytes = 7\n[worker]\nkv_memory = \"2GiB\"")
        .expect("valid");
    let flags = ListenSettings {
        port: Some(2),
        ..Default::default()
    };
    let listen = flags.resolve(f.server, false).expect("valid");
    assert_eq!((listen.api.port(), listen.max_body_bytes), (2, 7));
    assert_eq!(listen.api.ip(), IpAddr::from(Ipv4Addr::LOCALHOST));
    let workers = WorkerSettings::default().resolve(f.worker).expect("valid");
    assert_eq!(workers.kv_memory, Some(ByteSize(2 << 30)));
    assert_eq!(workers.models, [ModelSpec::embedded()]);
}

#[test]
fn the_example_holds_the_defaults() {
    let example = read(include_str!("../../../realm.example.toml")).expect("valid");
    let [listen, default] = [example.server, ListenSettings::default()]
        .map(|s| format!("{:?}", s.resolve(Default::default(), false)));
    assert_eq!(listen, default);
    let [workers, default] = [example.worker, WorkerSettings::default()]
        .map(|s| format!("{:?}", s.resolve(Default::default())));
    assert_eq!(workers, default);
}

#[test]
fn programs_are_kept_in_a_folder_that_is_named() {
    let off = ProgramSettings::default().resolve(ProgramSettings::default());
    assert_eq!(off.expect("valid"), None);
    let text = "programs = \"programs\"\nprogram_bytes = \"1MiB\"\ncompiler = \"sock\"";
    let file = read(text).expect("valid");
    let resolve = |flags: ProgramSettings| flags.resolve(file.programs.clone());
    let folder = resolve(ProgramSettings::default());
    let folder = folder.expect("valid").expect("given");
    assert!(folder.dir.is_absolute() && folder.dir.ends_with("programs"));
    assert_eq!(folder.most_bytes, 1 << 20);
    let compiler = folder.compiler.expect("given");
    assert!(compiler.is_absolute() && compiler.ends_with("sock"));
    let flags = ProgramSettings {
        programs: Some("/dev/null".into()),
        ..ProgramSettings::default()
    };
    assert!(matches!(resolve(flags), Err(ConfigError::NoFolder(_))));
}

#[test]
fn a_value_that_cannot_be_is_named_with_its_line_unless_a_flag_is_to_blame() {
    let text = "[server]\nhost = \"0.0.0.0\"\n[worker]\nmodel = [\"/no/such\"]\n";
    let file = read(text).expect("reads");
    let workers = |flags: WorkerSettings| {
        let resolved = file.under(flags, &file.worker, WorkerSettings::resolve);
        resolved.expect_err("is not there").to_string()
    };
    let said = workers(WorkerSettings::default());
    assert!(said.contains("realm.toml: line 4: `model`: "), "{said}");
    let low = "compile_memory = \"1MiB\"\n[worker]\nprogram_stack = \"1KiB\"\ninstances = 0\n";
    let low = read(low).expect("reads");
    let stack = low.under(
        WorkerSettings::default(),
        &low.worker,
        WorkerSettings::resolve,
    );
    let stack = stack.expect_err("too small").to_string();
    assert!(stack.contains("line 4: `instances`: "), "{stack}");
    let memory = ProgramSettings::default().compile_limits(&low.programs);
    let memory = memory.expect_err("too little").to_string();
    assert!(memory.contains("512MiB and 1024GiB"), "{memory}");
    let said = workers(WorkerSettings {
        model: vec!["other=/nor/this".parse().expect("a model")],
        ..WorkerSettings::default()
    });
    assert!(
        !said.contains("line") && said.contains("/nor/this"),
        "{said}"
    );
    let said = file.under(ListenSettings::default(), &file.server, |flags, file| {
        flags.resolve(file, false)
    });
    let said = said.expect_err("open to all");
    assert!(
        said.to_string().contains("line 2: `host`: 0.0.0.0"),
        "{said}"
    );
}

#[test]
fn devices_are_checked_before_a_worker_is_started() {
    let device = |text: &str| read(&format!("[worker]\ndevice = \"{text}\"\n"));
    let workers = |settings: WorkerSettings| settings.resolve(WorkerSettings::default());
    let second = workers(device("cuda:1").expect("reads").worker);
    assert_eq!(second.expect("valid").device, Device::Cuda(1));
    let held = |text: &str| read(&format!("[worker]\nquantization = \"{text}\"\n"));
    let fp8 = workers(held("fp8").expect("reads").worker).expect("valid");
    assert_eq!(fp8.quantization, Some(Quantization::Fp8));
    let said = held("int4").expect_err("no such type");
    assert!(said.contains("line 2") && said.contains("fp8"), "{said}");
    let said = device("gpu").expect_err("no device");
    assert!(said.contains("line 2") && said.contains("cuda:N"), "{said}");
    let fraction = |part| WorkerSettings {
        gpu_memory_fraction: Some(part),
        ..WorkerSettings::default()
    };
    assert_eq!(
        workers(fraction(0.5)).expect("valid").gpu_memory_fraction,
        Some(0.5)
    );
    for bad in [0.0, 0.99, f64::NAN] {
        let said = workers(fraction(bad))
            .expect_err("out of range")
            .to_string();
        assert!(said.contains("0.05 and 0.98"), "{said}");
    }
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let e = read("[server]\nport = 1\nprot = 2").expect_err("unknown key");
    assert!(e.contains("prot") && e.contains("line 3"), "{e}");
}

#[test]
fn tenants_are_read_over_their_defaults() {
    let file = read(
        "api_keys = \"keys.json\"\n\
         [tenant_defaults]\nrequests_per_minute = 60\nmax_context = 2\n\
         [[tenant]]\nid = \"acme\"\nmax_context = 5\nmodels = [\"a\"]\nweight = 2\n\
         program_memory = \"1MiB\"\nprogram_call_ms = 5\nprograms = 0\nprocessor = \"guard\"\n\
         program_seconds = 9\nprogram_saved_tokens = 7\nprogram_call_seconds = 2\n\
         program_host_call = \"64KiB\"\nprogram_handles = 3\n\
         [[tenant]]\nid = \"other\"\n",
    )
    .expect("valid");
    let [acme, other, unnamed] = ["acme", "other", "x"].map(|name| file.tenants.of(name));
    assert_eq!(acme.max_context, NonZeroU32::new(5));
    assert_eq!(acme.requests_per_minute, other.requests_per_minute);
    let weights = [acme, other].map(|tenant| tenant.allowance().weight);
    assert_eq!(weights, [2.0, 1.0]);
    assert!(acme.allows("a") && !acme.allows("b") && other.allows("b"));
    assert_eq!(unnamed.max_context, NonZeroU32::new(2));
    assert_eq!(unnamed.id, None);
    let usual = Allotment::default();
    assert_eq!(unnamed.allotment(), usual);
    let own = Allotment {
        memory: 1 << 20,
        call_micros: 5000,
        patience_millis: 2000,
        handed: 64 << 10,
        handles: 3,
        ..usual
    };
    assert_eq!((acme.allotment(), acme.most_programs()), (own, 0));
    let kept = (acme.program_wall(), acme.saved_tokens());
    assert_eq!(kept, (Duration::from_secs(9), 7));
    let processors = [acme, other].map(|tenant| tenant.processor.as_ref().map(|p| p.as_str()));
    assert_eq!(processors, [Some("guard"), None]);
    assert_eq!(file.tenants.processors().count(), 1);
    let keys = file.access.api_keys.expect("given");
    assert!(
        keys.is_absolute() && keys.ends_with("keys.json"),
        "{keys:?}"
    );
}

#[test]
fn what_is_wrong_with_a_tenant_is_named_with_its_line() {
    for (text, line, what) in [
        ("[[tenant]]\nid = \"a\"\n\n[[tenant]]\nid = \"a\"", 4, "`a`"),
        ("\n[[tenant]]\nmax_context = 1", 2, "id"),
        ("[[tenant]]\nid = \"a\"\nmax_contxet = 1", 3, "max_contxet"),
        ("[[tenant]]\nid = \"a\"\ntokens_per_minute = 0", 3, "zero"),
        ("[[tenant]]\nid = \"a\"\nmodels = \"a\"", 3, "sequence"),
        ("[tenant_defaults]\nid = \"a\"", 1, "id"),
        ("[[tenant]]\nid = \"a\"\nweight = 0", 3, "0.001 and 1000"),
        ("[[tenant]]\nid = \"a\"\nkv_share = 1.5", 3, "at most 1"),
        ("[[tenant]]\nid = \"a\"\npriority = \"top\"", 3, "normal"),
        ("[tenant_defaults]\nprogram_memory = \"1KiB\"", 2, "64KiB"),
        ("[tenant_defaults]\nprogram_call_ms = 0", 2, "1 and 10000"),
        ("[tenant_defaults]\nprogram_instances = 0", 2, "zero"),
        ("[tenant_defaults]\nprogram_seconds = 0", 2, "1 and 86400"),
        (
            "[tenant_defaults]\nprogram_host_call = \"1KiB\"",
            2,
            "64KiB and 64MiB",
        ),
        ("[tenant_defaults]\nprogram_handles = 0", 2, "1 and 65536"),
        (
            "[tenant_defaults]\nprogram_call_seconds = 0",
            2,
            "1 and 3600",
        ),
        (
            "[tenant_defaults]\nprogram_saved_tokens = 17000000",
            2,
            "16777216",
        ),
        ("[[tenant]]\nid = \"a\"\nprocessor = \"a b\"", 3, "name"),
    ] {
        let e = read(text).expect_err(text);
        assert!(
            e.contains(&format!("line {line}")) && e.contains(what),
            "{text}: {e}"
        );
    }
}

#[test]
fn the_open_network_needs_a_word() {
    let open = ListenSettings {
        host: Some([0, 0, 0, 0].into()),
        ..Default::default()
    };
    let resolve = |settings: &ListenSettings, keys| {
        let settings = settings.clone();
        settings.resolve(Default::default(), keys)
    };
    assert!(resolve(&open, false).is_err());
    assert!(resolve(&open, true).is_ok());
    let admin = ListenSettings {
        admin_addr: Some("0.0.0.0:9090".parse().expect("valid")),
        ..Default::default()
    };
    assert!(resolve(&admin, false).is_err());
    assert!(resolve(&admin, true).is_err());
    let said = ListenSettings {
        allow_unauthenticated: Some(true),
        ..open
    };
    assert!(resolve(&said, false).is_ok());
}

#[test]
fn models_are_named_once() {
    let twice = WorkerSettings {
        model: vec![ModelSpec::embedded(); 2],
        ..Default::default()
    };
    assert!(matches!(
        twice.resolve(Default::default()),
        Err(ConfigError::DuplicateModel(_))
    ));
    let named: ModelSpec = "small=embedded".parse().expect("valid");
    assert_eq!(
        named,
        ModelSpec {
            name: "small".into(),
            source: ModelSource::Embedded,
            attach: None
        }
    );
    assert!("=x".parse::<ModelSpec>().is_err());
    let nowhere = WorkerSettings {
        model: vec!["/no/such/place".parse().expect("it has a name")],
        ..Default::default()
    };
    assert!(matches!(
        nowhere.resolve(Default::default()),
        Err(ConfigError::NoDirectory(_))
    ));
}

#[test]
fn a_worker_is_attached_to_a_model_that_is_served() {
    let resolve = |attach: &[&str]| {
        let attach = attach.iter().map(|a| a.parse().expect("valid")).collect();
        let settings = WorkerSettings {
            attach,
            ..Default::default()
        };
        settings.resolve(Default::default())
    };
    let workers = resolve(&["realm-tiny=/run/a.sock"]).expect("valid");
    assert_eq!(workers.models[0].attach, Some("/run/a.sock".into()));
    assert!(matches!(
        resolve(&["other=/run/a.sock"]),
        Err(ConfigError::AttachUnknown(_))
    ));
    assert!(matches!(
        resolve(&["realm-tiny=/run/a.sock", "realm-tiny=/run/b.sock"]),
        Err(ConfigError::AttachTwice(_))
    ));
    for bad in ["/run/a.sock", "=/run/a.sock", "realm-tiny="] {
        assert!(bad.parse::<Attach>().is_err(), "{bad}");
    }
    let f = read("[worker]\nattach = [\"realm-tiny=/run/a.sock\"]").expect("valid");
    let workers = WorkerSettings::default().resolve(f.worker).expect("valid");
    assert_eq!(workers.models[0].attach, Some("/run/a.sock".into()));
}
