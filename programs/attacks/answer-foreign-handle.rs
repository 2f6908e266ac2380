//! Uses a handle of a sequence that it was not given: that of another instance, perhaps, or of another tenant. Which
//! one, the request says.
#![expect(
    unsafe_code,
    reason = "the crate to write programs with has no words for it"
)]

use realm_program::program::{Finish, Request, Sequence, emit};
use realm_program::{Error, program};

#[cfg(target_arch = "wasm32")]
#[link(wasm_import_module = "realm:program/sequences@0.1.0")]
unsafe extern "C" {
    #[link_name = "[method]sequence.length"]
    fn length(handle: u32) -> u32;
}

#[cfg(not(target_arch = "wasm32"))]
unsafe fn length(_: u32) -> u32 {
    0
}

fn answer(request: Request) -> Result<Finish, Error> {
    let handle: u32 = request.args()?;
    let _own = Sequence::new(&request.prompt, request.sampling);
    // SAFETY: the call is what the contract says of it, and whether there is such a sequence is for the host to see.
    emit(&unsafe { length(handle) }.to_string());
    Ok(Finish::Stop)
}

program!(answer);
