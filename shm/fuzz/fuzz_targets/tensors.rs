#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| realm_shm::fuzz::tensors(data));
