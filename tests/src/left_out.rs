//! What a machine can't run is said aloud, never passed over.

use std::io::Write;

/// Notes that `test` did not run because of `reason`; the test run ends with the list.
pub fn note(test: &str, reason: &str) {
    println!("!! LEFT OUT {test}: {reason}");
    let Some(list) = std::env::var_os("POSTERN_TESTS_LEFT_OUT") else {
        return;
    };
    let mut file = std::fs::File::options()
        .append(true)
        .create(true)
        .open(list)
        .expect("the list of what was left out can be written");
    writeln!(file, "{test}: {reason}").expect("the list of what was left out can be written");
}
