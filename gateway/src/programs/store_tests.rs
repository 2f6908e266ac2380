use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::programs::Interfaces;

fn name(name: &str) -> ProgramName {
    name.parse().expect("a name")
}

fn record(called: &str, component: &[u8]) -> ProgramRecord {
    ProgramRecord {
        name: name(called),
        kind: Kind::Processor,
        base: None,
        sha256: Digest::of(component),
        bytes: component.len() as u64,
        created: Timestamp::from_second(1).expect("in range"),
    }
}

fn fingerprint(text: &str) -> Fingerprint {
    Fingerprint::parse(text).expect("a fingerprint")
}

fn compiled(code: &[u8]) -> Compiled {
    let mut draft = Draft::new().expect("memory");
    draft.write(code).expect("written");
    Compiled {
        kind: Kind::Processor,
        fingerprint: fingerprint("ab"),
        interfaces: Interfaces::default(),
        image: draft.seal().expect("sealed"),
    }
}

fn put(store: &Store, tenant: &str, called: &str, component: &[u8]) -> Put {
    let code = [component, b" compiled"].concat();
    let record = record(called, component);
    store
        .put(tenant, 2, &record, component, &compiled(&code))
        .expect("can be written")
}

fn code(store: &Store, component: &[u8]) -> Option<Vec<u8>> {
    let image = store.compiled(&Digest::of(component), &fingerprint("ab"));
    image.expect("can be read").map(|image| {
        let mut code = Vec::new();
        let each = |part: &[u8]| {
            code.extend_from_slice(part);
            Ok(())
        };
        image.read(each).expect("memory");
        code
    })
}

fn files(dir: &Path) -> usize {
    ["components", "compiled"].map(|f| entries(&dir.join(f)).expect("there").len())[..]
        .iter()
        .sum()
}

#[test]
fn what_is_stored_is_a_tenants_own() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = Store::open(dir.path()).expect("opens");
    for (tenant, called) in [("a/../b", "x"), ("a/../b", "w"), ("..", "x"), ("ä", "x")] {
        assert_eq!(put(&store, tenant, called, b"same"), Put::Stored);
    }
    let names = |tenant: &str| {
        let records = store.records(tenant).expect("can be read");
        let names = records.iter().map(|record| record.name.to_string());
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!((names("a/../b"), names("..")), ("w x".into(), "x".into()));
    assert_eq!(names("nobody"), "");
    assert_eq!(
        store.record("..", &name("x")).expect("can be read"),
        Some(record("x", b"same"))
    );
    assert_eq!(store.record("..", &name("w")).expect("can be read"), None);
    let outside = dir.path().parent().expect("a folder").join("x.json");
    assert!(!outside.exists() && !dir.path().join("x.json").exists());
    let digest = Digest::of(b"same");
    let component = store.component(&digest).expect("can be read");
    assert_eq!(component.as_deref(), Some(&b"same"[..]));
    // Nobody else of this machine reads what tenants sent.
    for file in [dir.path().join("key"), store.component_path(&digest)] {
        let mode = std::fs::metadata(file).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn a_tenant_stores_as_many_as_it_may() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = Store::open(dir.path()).expect("opens");
    for called in ["a", "b", "a"] {
        assert_eq!(put(&store, "acme", called, b"one"), Put::Stored);
    }
    assert_eq!(put(&store, "acme", "c", b"two"), Put::Full);
    // Nothing is left of it.
    assert_eq!(files(dir.path()), 2);
    assert_eq!(put(&store, "other", "c", b"two"), Put::Stored);
}

#[test]
fn what_no_record_names_goes() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = Store::open(dir.path()).expect("opens");
    put(&store, "acme", "a", b"one");
    put(&store, "other", "a", b"one");
    put(&store, "acme", "a", b"two");
    assert_eq!(files(dir.path()), 4, "the other tenant has it too");
    put(&store, "acme", "a", b"two");
    assert_eq!(files(dir.path()), 4);
    let remove = |tenant| store.remove(tenant, &name("a")).expect("can be written");
    assert!(remove("other") && !remove("other"));
    assert_eq!(files(dir.path()), 2);
    assert_eq!(code(&store, b"one"), None);
    assert!(code(&store, b"two").is_some());

    // What nobody names is not kept either.
    let digest = Digest::of(b"one");
    store.keep(&digest, &compiled(b"late")).expect("no error");
    assert_eq!(code(&store, b"one"), None);

    // Nor what somebody left who was killed, while what is being written stays.
    for (file, age) in [(".new-old", ABANDONED * 2), (".new-young", ABANDONED / 2)] {
        let file = File::create(dir.path().join("components").join(file)).expect("made");
        file.set_modified(SystemTime::now() - age).expect("set");
    }
    assert!(remove("acme"));
    assert_eq!(files(dir.path()), 1);
}

#[test]
fn code_that_is_not_ours_is_not_used() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = Store::open(dir.path()).expect("opens");
    put(&store, "acme", "a", b"one");
    put(&store, "acme", "b", b"two");
    assert_eq!(code(&store, b"one").as_deref(), Some(&b"one compiled"[..]));
    let path = |component: &[u8]| store.compiled_path(&Digest::of(component), &fingerprint("ab"));
    let whole = std::fs::read(path(b"one")).expect("there");
    for i in 0..whole.len() {
        let mut changed = whole.clone();
        changed[i] ^= 1;
        std::fs::write(path(b"one"), changed).expect("written");
        assert_eq!(code(&store, b"one"), None, "byte {i}");
        std::fs::write(path(b"one"), &whole[..i]).expect("written");
        assert_eq!(code(&store, b"one"), None, "the first {i} bytes");
    }
    // It is of one component, for one fingerprint.
    std::fs::copy(path(b"two"), path(b"one")).expect("copied");
    assert_eq!(code(&store, b"one"), None);
    let other = fingerprint("abc");
    let digest = Digest::of(b"two");
    std::fs::copy(path(b"two"), store.compiled_path(&digest, &other)).expect("copied");
    assert!(store.compiled(&digest, &other).expect("read").is_none());
    // It is replaced by what is compiled anew.
    let kept = store.keep(&Digest::of(b"one"), &compiled(b"anew"));
    kept.expect("written");
    assert_eq!(code(&store, b"one").as_deref(), Some(&b"anew"[..]));

    // Another gateway of the folder believes it, until it has another key.
    let another = Store::open(dir.path()).expect("opens");
    assert_eq!(code(&another, b"one").as_deref(), Some(&b"anew"[..]));
    std::fs::write(dir.path().join("key"), [7; KEY]).expect("written");
    let another = Store::open(dir.path()).expect("opens");
    assert_eq!(code(&another, b"one"), None);
    std::fs::write(dir.path().join("key"), b"short").expect("written");
    let error = Store::open(dir.path()).expect_err("no key").to_string();
    assert!(error.contains("32 bytes"), "{error}");
}

#[test]
fn a_component_is_what_its_name_says() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = Store::open(dir.path()).expect("opens");
    put(&store, "acme", "a", b"one");
    let digest = Digest::of(b"one");
    std::fs::write(store.component_path(&digest), b"other").expect("written");
    assert_eq!(store.component(&digest).expect("can be read"), None);
    let gone = store.component(&Digest::of(b"none"));
    assert_eq!(gone.expect("can be read"), None);
}

#[test]
fn changes_at_once_lose_nothing_that_is_named() {
    let dir = tempfile::tempdir().expect("temporary directory");
    std::thread::scope(|scope| {
        for tenant in ["a", "b", "c", "d"] {
            let dir = dir.path();
            scope.spawn(move || {
                // Each is a gateway of its own; they make one key.
                let store = Store::open(dir).expect("opens");
                for i in 0..20 {
                    // They share components, which one names while another does no longer.
                    put(&store, tenant, "x", &[i % 3]);
                    if i % 4 == 3 {
                        assert!(store.remove(tenant, &name("x")).expect("written"));
                    }
                }
                put(&store, tenant, "x", &[7]);
            });
        }
    });
    let store = Store::open(dir.path()).expect("opens");
    for tenant in ["a", "b", "c", "d"] {
        let records = store.records(tenant).expect("can be read");
        assert_eq!(records, [record("x", &[7])]);
    }
    assert!(store.component(&Digest::of(&[7])).expect("read").is_some());
    assert_eq!(files(dir.path()), 2);
    assert_eq!(code(&store, &[7]), Some(b"\x07 compiled".to_vec()));
}
