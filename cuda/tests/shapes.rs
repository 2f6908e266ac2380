//! That what does not fit together is refused before it is launched.

use realm_cuda::attention::{Plan, Shape};
use realm_cuda::norm::AddRmsNorm;
use realm_cuda::{Element, Product, Scales};
use realm_cuda_emulator::{Buffer, Emulator};

#[test]
fn norms_that_do_not_fit_are_refused() {
    let emulator = Emulator::new();
    let small = Buffer::<f32>::new(64);
    let norm = AddRmsNorm {
        element: Element::F32,
        rows: 2,
        width: 32,
        hidden: small.memory(),
        delta: None,
        weight: small.memory(),
        eps: 1e-5,
        out: small.memory(),
    };
    norm.launch(&emulator).expect("fits");
    let why = |norm: AddRmsNorm| norm.launch(&emulator).expect_err("refused").to_string();
    let message = why(AddRmsNorm { rows: 3, ..norm });
    assert_eq!(
        message,
        "add_rms_norm: `hidden` holds 256 bytes, not [3, 32] elements of 4"
    );
    let message = why(AddRmsNorm { width: 30, ..norm });
    assert_eq!(message, "add_rms_norm: `width` is 30, no multiple of 8");
    let message = why(AddRmsNorm { rows: 0, ..norm });
    assert_eq!(message, "add_rms_norm: `rows` is 0, no multiple of 1");
    let odd = small.memory().part(4, 252).expect("a part");
    let message = why(AddRmsNorm {
        weight: odd,
        ..norm
    });
    assert!(message.contains("`weight` lies at"), "{message}");
    assert_eq!(small.memory().part(200, 57), None);
}

#[test]
fn plans_that_do_not_fit_are_refused() {
    let emulator = Emulator::new();
    let right = Shape {
        element: Element::Bf16,
        head_dim: 128,
        heads: 8,
        kv_heads: 2,
        window: None,
        tokens: 4,
        rows: 4,
        row_blocks: 2,
        decode_tokens: 1,
    };
    let (starts, context) = (Buffer::of(&[0, 1, 2, 3, 4]), Buffer::of(&[0; 4]));
    let items = Buffer::<u8>::new(right.items_bytes());
    let launch = |shape| {
        let plan = Plan {
            shape,
            starts: starts.memory(),
            context: context.memory(),
            items: items.memory(),
        };
        plan.launch(&emulator).map_err(|error| error.to_string())
    };
    launch(right).expect("a plan");
    for (shape, word) in [
        (
            Shape {
                head_dim: 80,
                ..right
            },
            "80 dimensions",
        ),
        (Shape { heads: 7, ..right }, "7 query heads for 2"),
        (
            Shape {
                kv_heads: 0,
                ..right
            },
            "0 kv heads",
        ),
        (
            Shape {
                window: Some(0),
                ..right
            },
            "window of no tokens",
        ),
        (
            Shape {
                decode_tokens: 5,
                ..right
            },
            "20 queries",
        ),
        (
            Shape {
                decode_tokens: 0,
                ..right
            },
            "`decode_tokens` is 0",
        ),
        (Shape { rows: 5, ..right }, "`items` holds"),
        (
            Shape {
                tokens: usize::MAX / 8,
                ..right
            },
            "sizes",
        ),
    ] {
        let error = launch(shape).expect_err(word);
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn products_of_fp8_that_devices_do_not_have_are_refused() {
    let buffer = Buffer::<u8>::new(4096);
    let memory = buffer.memory();
    let product = |element, inputs, outputs| {
        let product = Product {
            element,
            rows: 1,
            inputs,
            outputs,
            x: memory,
            weight: memory,
            scales: Some(Scales {
                x: memory,
                weight: memory,
            }),
            bias: None,
            out: memory,
        };
        product.check().map_err(|error| error.to_string())
    };
    product(Element::Bf16, 16, 32).expect("fits");
    for (element, inputs, outputs, word) in [
        (Element::F16, 16, 32, "bf16, not f16"),
        (Element::Bf16, 24, 32, "`inputs` is 24"),
        (Element::Bf16, 16, 40, "`outputs` is 40"),
        (Element::Bf16, 16, 1024, "`weight` holds"),
    ] {
        let error = product(element, inputs, outputs).expect_err(word);
        assert!(error.contains(word), "{error}");
    }
}
