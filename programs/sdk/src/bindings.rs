//! What is generated from the contract, `shared/wit`.

wit_bindgen::generate!({
    path: "../../shared/wit",
    world: "processor",
    pub_export_macro: true,
    export_macro_name: "export",
    default_bindings_module: "realm_program::bindings",
});
