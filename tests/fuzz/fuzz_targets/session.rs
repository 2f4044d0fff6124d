//! See `pleach_tests::fuzz::session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pleach_tests::fuzz::session(data));
