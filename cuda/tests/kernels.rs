//! That the emulator, and so each kernel, agrees with its references: the cases of `realm_cuda::check`.

use realm_cuda::check::{Case, Scale, Scratch, cases};
use realm_cuda_emulator::Emulator;

fn case(name: &str) -> Case<Emulator> {
    let case = cases().into_iter().find(|case| case.name == name);
    case.unwrap_or_else(|| panic!("there is no case {name}"))
}

/// Runs a case where what lies behind arrays cannot be touched.
fn agrees(name: &str) {
    let emulator = Emulator::new();
    let outcome = case(name).run(&Scratch::separate(&emulator), Scale::Small);
    if let Err(fault) = outcome {
        panic!("{name}: {fault}");
    }
}

/// A test for each of the cases.
macro_rules! tests {
    ($($test:ident: $name:literal,)*) => {
        $(#[test] fn $test() { agrees($name) })*

        #[test]
        fn every_case_has_its_test() {
            let names: Vec<&str> = cases::<Emulator>().iter().map(|case| case.name).collect();
            assert_eq!([$($name),*].as_slice(), names);
        }
    };
}

tests! {
    memory_keeps_what_is_written: "memory",
    products_are_those_of_the_matrices: "product",
    tensor_cores_multiply_what_they_should: "tensor_cores",
    tokens_have_their_rows_of_the_embedding: "embed",
    wanted_rows_are_gathered: "gather_rows",
    rows_are_added_and_normalized: "add_rms_norm",
    gates_multiply_ups: "silu_multiply",
    rows_become_the_nearest_of_fp8: "quantize_rows",
    products_of_fp8_are_those_of_what_it_stands_for: "scaled_product",
    heads_are_rotated_and_stored: "rotate_and_store",
    angles_are_exact_at_any_position: "rotary_angles",
    every_variant_gives_the_definition: "attention_variants",
    every_group_gives_the_definition: "attention_groups",
    windows_hide_what_is_before_them: "attention_windows",
    long_rows_have_as_many_splits_as_there_may_be: "attention_long_rows",
    rows_of_a_few_tokens_are_decoded: "attention_few_tokens",
    rows_of_all_lengths_are_decoded_at_once: "attention_batch",
    a_captured_step_serves_other_rows: "attention_graph",
    a_row_depends_on_nothing_else_in_the_step: "attention_alone",
    rows_that_cannot_be_are_left_out: "attention_plan",
    draws_are_those_of_the_cpu: "draws",
    each_filter_is_right_on_its_own: "filters",
    ties_go_to_the_lower_token: "ties",
    broken_numbers_are_survived: "broken_numbers",
    what_pads_a_batch_does_nothing: "padding",
    tokens_are_counted: "token_counts",
    memory_is_read_once: "read_all",
    graphs_do_again_what_was_asked_for: "graph",
}

#[test]
fn cases_can_share_their_memory() {
    let emulator = Emulator::new();
    let scratch = Scratch::within(&emulator, Scale::Small.scratch_bytes()).expect("memory");
    for case in ["memory", "read_all", "attention_plan", "memory", "graph"].map(case) {
        if let Err(fault) = case.run(&scratch, Scale::Small) {
            panic!("{}: {fault}", case.name);
        }
    }
}
