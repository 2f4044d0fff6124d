//! See `pleach_tests::fuzz::store`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pleach_tests::fuzz::store(data));
