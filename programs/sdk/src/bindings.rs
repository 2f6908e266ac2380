//! What is generated from the contract, `shared/wit`.

wit_bindgen::generate!({
    path: "../../shared/wit",
    world: "processor",
    pub_export_macro: true,
    export_macro_name: "export",
    default_bindings_module: "realm_program::bindings",
});

/// The world of programs that answer. What both worlds have is that of processors.
pub mod answering {
    wit_bindgen::generate!({
        path: "../../shared/wit",
        world: "program",
        with: {
            "realm:program/types@0.1.0": crate::bindings::realm::program::types,
            "realm:program/text@0.1.0": crate::bindings::realm::program::text,
            "realm:program/grammars@0.1.0": crate::bindings::realm::program::grammars,
            "realm:program/control@0.1.0": crate::bindings::realm::program::control,
        },
        pub_export_macro: true,
        export_macro_name: "export_program",
        default_bindings_module: "realm_program::bindings::answering",
    });
}
