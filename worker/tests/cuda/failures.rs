//! A device that fails in the middle of a step.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use realm_cuda_emulator::{Asked, Emulator, Watched};
use realm_shared::wire::Sampling;
use realm_shared::wire::step::{INPUT_SAMPLED, SAMPLE};
use realm_worker::batch::Step;
use realm_worker::config::DType;
use realm_worker::engine::{Engine, Options};
use serde_json::json;

use super::engine::{on_device, options};
use super::model::{Model, config};

const WHY: &str = "it fell off the bus";

/// Two prompts beside each other, and two steps that decode, of which one is launched before the prompts' is over.
fn steps(engine: &mut Engine) -> Result<(), String> {
    for slot in 0..2 {
        let drawn = engine.open(slot, Sampling::default(), std::iter::empty(), &[], None);
        drawn.map_err(|error| error.to_string())?;
    }
    let prompt = [5, 6, 7, 8, 9];
    for turn in 0..3 {
        let prefill = turn == 0;
        let step = Step {
            slots: &[0, 1],
            starts: if prefill { &[0, 3, 5] } else { &[0, 1, 2] },
            context: &[[0, 0], [3, 2], [4, 3]][turn],
            flags: &[if prefill {
                SAMPLE
            } else {
                SAMPLE | INPUT_SAMPLED
            }; 2],
            index: &[turn as i32; 2],
            tokens: if prefill { &prompt } else { &[-1, -1] },
            blocks: &[0, 1],
            targets: &[],
            top: 0,
        };
        engine.launch(step).map_err(|error| error.to_string())?;
        if turn > 0 {
            engine.finish().map_err(|error| error.to_string())?;
        }
    }
    let over = engine.has_finished().map_err(|error| error.to_string())?;
    assert!(over);
    engine.finish().map_err(|error| error.to_string())?;
    Ok(())
}

#[test]
fn a_step_ends_with_the_error_wherever_the_device_fails() {
    let config = config("LlamaForCausalLM", json!({}));
    let model = Model::new(&config, DType::F32);
    let options = Options {
        max_sequences: Some(2),
        ..options()
    };
    let mut at = 0;
    loop {
        // What is left to do until it fails; for ever, as devices do.
        let left = Arc::new(AtomicI64::new(i64::MAX));
        let counted = left.clone();
        let watch = move |_: Asked| match counted.fetch_sub(1, Ordering::Relaxed) {
            1.. => Ok(()),
            _ => Err(WHY.to_owned()),
        };
        let device = Watched::new(Emulator::new(), watch);
        let mut engine = on_device(&model, &options, device).expect("loads");
        left.store(at, Ordering::Relaxed);
        let Err(error) = steps(&mut engine) else {
            break;
        };
        let sentence = error.starts_with("the device failed in a forward pass: ");
        assert!(sentence && error.ends_with(WHY), "{at}: {error}");
        // Nor does it take another gateway.
        let error = engine.reset().expect_err("it failed").to_string();
        assert!(error.ends_with(WHY), "{at}: {error}");
        at += 1;
    }
    // More than once in each of its layers.
    assert!(at > 40, "{at}");
}
