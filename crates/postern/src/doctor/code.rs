//! Stable names of causes, for scripts and for searching. What `postern check` says keeps the codes
//! it has there.

/// A name does not exist in DNS, or has no address.
pub const NAME_UNKNOWN: &str = "name-unknown";
/// No name server answers.
pub const NAME_SERVER_SILENT: &str = "name-server-silent";
/// Nobody listens there.
pub const REFUSED: &str = "connection-refused";
/// Packets don't arrive, or no answer comes back.
pub const UNREACHABLE: &str = "unreachable";
/// It takes connections and does not answer.
pub const SILENT: &str = "silent";
pub const CERTIFICATE_EXPIRED: &str = "certificate-expired";
pub const CERTIFICATE_NOT_YET_VALID: &str = "certificate-not-yet-valid";
pub const CERTIFICATE_WRONG_NAME: &str = "certificate-wrong-name";
pub const CERTIFICATE_UNKNOWN_AUTHORITY: &str = "certificate-unknown-authority";
/// A certificate is not accepted for another reason.
pub const CERTIFICATE_REFUSED: &str = "certificate-refused";
pub const CERTIFICATE_EXPIRES_SOON: &str = "certificate-expires-soon";
/// No certificate of a listener is for a host that it serves.
pub const CERTIFICATE_MISSING: &str = "certificate-missing";
/// TLS was expected, and there is clear text.
pub const CLEAR_TEXT: &str = "clear-text";
/// Clear text was expected, and there is TLS.
pub const TLS_EXPECTED: &str = "tls-expected";
/// TLS fails for another reason than the certificate.
pub const TLS_FAILS: &str = "tls-fails";
/// Something else listens there.
pub const OTHER_PROTOCOL: &str = "other-protocol";
pub const NOT_POSTERN: &str = "not-postern";
pub const SECRETS_DIFFER: &str = "secrets-differ";
pub const CLOCKS_DIFFER: &str = "clocks-differ";
pub const VERSIONS_DIFFER: &str = "versions-differ";
/// Applications would not accept what another part of the deployment signs.
pub const SIGNING_KEYS_DIFFER: &str = "signing-keys-differ";
/// Databrokers under one name with records of their own.
pub const SPLIT_BRAIN: &str = "split-brain";
pub const NOT_READY: &str = "not-ready";
pub const AUTHENTICATE_URL_DIFFERS: &str = "authenticate-url-differs";
pub const PROVIDER_DOCUMENT: &str = "provider-document";
pub const PROVIDER_KEYS: &str = "provider-keys";
pub const PROVIDER_REFUSES_SIGN_IN: &str = "provider-refuses-sign-in";
pub const PROVIDER_REJECTS_CLIENT: &str = "provider-rejects-client";
pub const PROVIDER_UNREACHABLE: &str = "provider-unreachable";
pub const STORAGE_LOGIN: &str = "storage-login";
pub const STORAGE_NO_DATABASE: &str = "storage-no-database";
pub const STORAGE_NO_RIGHTS: &str = "storage-no-rights";
/// Every server that answers can only be read from.
pub const STORAGE_READ_ONLY: &str = "storage-read-only";
pub const STORAGE_TOO_OLD: &str = "storage-too-old";
pub const STORAGE_NEWER: &str = "storage-newer-schema";
pub const STORAGE_OTHER_KEY: &str = "storage-other-key";
pub const STORAGE_FAILS: &str = "storage-fails";
pub const PORT_TAKEN: &str = "port-taken";
pub const PORT_FORBIDDEN: &str = "port-forbidden";
pub const ADDRESS_NOT_HERE: &str = "address-not-here";
pub const FEW_DESCRIPTORS: &str = "few-descriptors";
/// A check did not come to an end.
pub const UNFINISHED: &str = "unfinished";
