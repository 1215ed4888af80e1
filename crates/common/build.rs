//! Compiles `/proto` into the gRPC stubs, without protoc.

use std::{env, error::Error, fs, path::Path};

/// Every file that is not imported by another one.
const FILES: [&str; 9] = [
    "databroker/databroker.proto",
    "session/session.proto",
    "user/user.proto",
    "registry/registry.proto",
    "pomerium/device/device.proto",
    "pomerium/events/last_error.proto",
    "envoy/service/auth/v3/external_auth.proto",
    "opentelemetry/proto/collector/trace/v1/trace_service.proto",
    "postern/authorize/v1/decisions.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let proto = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let out = env::var("OUT_DIR")?;
    println!("cargo::rerun-if-changed={}", proto.display());

    let mut compiler = protox::Compiler::new([&proto])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(FILES.map(|file| proto.join(file)))?;

    tonic_prost_build::configure()
        .bytes(".postern.authorize.v1")
        .include_file("stubs.rs")
        .emit_rerun_if_changed(false)
        .compile_fds(compiler.file_descriptor_set())?;

    // For those who look at messages by name; comments would only be dead weight in a binary.
    fs::write(
        Path::new(&out).join("descriptors.bin"),
        compiler
            .include_source_info(false)
            .encode_file_descriptor_set(),
    )?;
    Ok(())
}
