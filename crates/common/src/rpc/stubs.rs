//! Generated from `/proto` by `build.rs`: messages, clients and servers, one module a package.

/// The modules nest as the packages do; the names below are shorter.
#[expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::module_inception,
    clippy::pedantic,
    reason = "generated code"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/stubs.rs"));
}

pub use generated::{databroker, envoy, google, opentelemetry, registry, session, user};

pub use generated::envoy::service::auth::v3 as ext_authz;
pub use generated::pomerium::{device, events};
pub use generated::postern::authorize::v1 as authorize;

/// Every message and service above as an encoded `google.protobuf.FileDescriptorSet`, for those who look at
/// messages by name (field masks, filters).
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[cfg(test)]
mod tests {
    use prost::Message as _;

    #[test]
    fn descriptors_hold_every_package_and_its_imports() {
        let set = prost_types::FileDescriptorSet::decode(super::FILE_DESCRIPTOR_SET).unwrap();
        let packages: Vec<_> = set
            .file
            .iter()
            .map(prost_types::FileDescriptorProto::package)
            .collect();
        for package in [
            "databroker",
            "session",
            "user",
            "registry",
            "pomerium.device",
            "pomerium.events",
            "envoy.service.auth.v3",
            "google.rpc",
            "opentelemetry.proto.trace.v1",
            "postern.authorize.v1",
            "google.protobuf",
        ] {
            assert!(
                packages.contains(&package),
                "{package} is missing in {packages:?}"
            );
        }
    }
}
