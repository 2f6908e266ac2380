//! A server with programs of tenants: components made from `programs/`.
//!
//! `cargo xtask programs` makes them; `REALM_PROGRAMS` says where they are.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;

use super::client::Transcript;
use super::requests::kinds;
use super::{Answer, Server, setting};

/// Programs that no one tenant can push in an hour are none of these.
const MANY: &str = "[tenant_defaults]\nprogram_call_ms = 50\n";

/// A server that keeps programs in a folder of its own.
pub(crate) struct Shop {
    pub(crate) server: Server,
    pub(crate) folder: TempDir,
}

impl Shop {
    pub(crate) fn open(programs: &[&str]) -> Shop {
        Shop::open_with(programs, &[])
    }

    /// The same with variables in the environment of its server.
    pub(crate) fn open_with(programs: &[&str], env: &[(&str, &str)]) -> Shop {
        Shop::serving(programs, &[], env)
    }

    /// The same with arguments of its server.
    pub(crate) fn serving(programs: &[&str], args: &[&str], env: &[(&str, &str)]) -> Shop {
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("realm.toml");
        std::fs::write(&config, MANY).expect("written");
        let store = folder.path().join("programs");
        let (config, store) = (config.display().to_string(), store.display().to_string());
        let args = [args, &["--config", &config, "--programs", &store]].concat();
        let server = Server::start_with(&args, env);
        let shop = Shop { server, folder };
        for name in programs {
            let pushed = shop.push(name, name);
            assert_eq!(pushed.status, 200, "{name}: {}", pushed.body);
        }
        shop
    }

    /// Pushes a component under a name.
    pub(crate) fn push(&self, name: &str, component: &str) -> Answer {
        let folder = std::env::var("REALM_PROGRAMS");
        let folder = folder.expect("REALM_PROGRAMS is set: run `cargo xtask programs` first");
        let path = Path::new(&folder).join(format!("{component}.wasm"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        self.server
            .post_component(&format!("/v1/programs?name={name}"), &bytes)
    }
}

impl Shop {
    /// Has `attack` called again and again while requests of every kind are answered, which must notice
    /// nothing of it; and neither must the worker.
    pub(crate) fn attacked(&self, seed: u64, attack: impl Fn() + Sync) {
        let neighbours = kinds(seed, 48);
        let alone: Vec<Transcript> = neighbours.iter().map(|r| self.server.ask(r)).collect();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let attackers = scope.spawn(|| {
                for _ in 0..setting("REALM_TEST_ATTACKS", 2) {
                    attack();
                }
                over.store(true, Ordering::Release);
            });
            while !over.load(Ordering::Acquire) && !attackers.is_finished() {
                for (request, alone) in neighbours.iter().zip(&alone) {
                    assert_eq!(&self.server.ask(request), alone, "{}", request.name);
                }
            }
            attackers.join().expect("every attack ends as it should");
        });
        assert_eq!(self.server.metric("realm_worker_ends_total"), 0.0);
    }
}

/// The status and code of an answer that is an error.
pub(crate) fn code(answer: &Answer) -> (u16, String) {
    let code = answer.json()["error"]["code"].take();
    (answer.status, code.as_str().unwrap_or_default().to_owned())
}

/// The text of an answer that is one.
pub(crate) fn content(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let content = answer.json()["choices"][0]["message"]["content"].take();
    content.as_str().expect("a text").to_owned()
}
