#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    towline_fuzz::certificates::certificate(bytes);
    towline_fuzz::certificates::file(bytes);
});
