//! `tls_derive`: an authority that follows from the shared secret. Whoever knows the secret has
//! it, so services trust each other without a certificate being handed out.
//!
//! The keys are those that Pomerium derives, so both products trust each other's certificates.
//! Everything here is a function of the secret and the name: replicas show the same certificate,
//! and so does a process after a reload.

use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{DerSignature, SigningKey};
use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use p256::pkcs8::EncodePrivateKey as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SerialNumber, SignatureAlgorithm,
    date_time_ymd,
};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use crate::crypto::keys::{self, SecretKey};

/// What bytes are derived for: the first byte of the input.
#[derive(Debug, Clone, Copy)]
enum Purpose {
    AuthorityKey = 0,
    ServerKey = 2,
    Serial = 4,
}

/// The authority of one shared secret.
pub struct DerivedAuthority {
    secret: SecretKey,
    issuer: Issuer<'static, Key>,
    certificate: CertificateDer<'static>,
}

/// The crypto library failed; no secret and no name that was checked does this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no certificate can be derived from the shared secret")]
pub struct DeriveError;

impl DerivedAuthority {
    /// Of `secret`.
    pub fn new(secret: &SecretKey) -> Result<Self, DeriveError> {
        let key = Key::derived(secret, Purpose::AuthorityKey, None)?;
        let mut params = params(secret, None)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "Pomerium PSK CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ClientAuth);
        let certificate = params.self_signed(&key).map_err(|_| DeriveError)?;
        Ok(Self {
            secret: secret.clone(),
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        })
    }

    /// For those who are to trust it.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The certificate of a server that is called `name`, a DNS name.
    pub fn server(&self, name: &str) -> Result<CertifiedKey, DeriveError> {
        let key = Key::derived(&self.secret, Purpose::ServerKey, Some(name))?;
        let mut params = params(&self.secret, Some(name))?;
        params.use_authority_key_identifier_extension = true;
        let leaf = params
            .signed_by(&key, &self.issuer)
            .map_err(|_| DeriveError)?;
        let private = key.private()?;
        let signer = any_ecdsa_type(&private).map_err(|_| DeriveError)?;
        Ok(CertifiedKey::new(vec![leaf.der().clone()], signer))
    }
}

fn params(secret: &SecretKey, name: Option<&str>) -> Result<CertificateParams, DeriveError> {
    let names: Vec<_> = name.map(str::to_owned).into_iter().collect();
    let mut params = CertificateParams::new(names).map_err(|_| DeriveError)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Pomerium");
    params.not_before = date_time_ymd(2022, 12, 1);
    params.not_after = date_time_ymd(2050, 12, 1);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let mut serial = [0; 16];
    expand(secret, Purpose::Serial, name, &mut serial);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

/// HKDF-SHA-256 without salt and info, over purpose ‖ secret ‖ 0 ‖ name ‖ 0.
fn expand(secret: &SecretKey, purpose: Purpose, name: Option<&str>, out: &mut [u8]) {
    let mut input = zeroize::Zeroizing::new(vec![purpose as u8]);
    input.extend_from_slice(secret.as_bytes());
    input.push(0);
    if let Some(name) = name {
        input.extend_from_slice(name.as_bytes());
        input.push(0);
    }
    keys::expand(&input, "", out);
}

/// A key whose signatures are deterministic (RFC 6979).
struct Key {
    secret: p256::SecretKey,
    signer: SigningKey,
    public: Vec<u8>,
}

impl Key {
    fn derived(
        secret: &SecretKey,
        purpose: Purpose,
        name: Option<&str>,
    ) -> Result<Self, DeriveError> {
        let mut wide = zeroize::Zeroizing::new([0; 40]);
        expand(secret, purpose, name, wide.as_mut());
        let secret = keys::p256_key(&wide).ok_or(DeriveError)?;
        Ok(Self {
            public: secret
                .public_key()
                .to_encoded_point(false)
                .as_bytes()
                .into(),
            signer: SigningKey::from(&secret),
            secret,
        })
    }

    fn private(&self) -> Result<PrivateKeyDer<'static>, DeriveError> {
        let der = self.secret.to_pkcs8_der().map_err(|_| DeriveError)?;
        Ok(PrivatePkcs8KeyDer::from(der.as_bytes().to_vec()).into())
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature: DerSignature = self.signer.sign(message);
        Ok(signature.as_bytes().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sha2::{Digest as _, Sha256};
    use x509_parser::prelude::{FromDer as _, X509Certificate};

    use super::*;
    use crate::tls::tests::handshake;
    use crate::tls::{Alpn, Certificates, SwapCertificates, Trust, client_config, server_config};

    /// A secret of Pomerium's own tests, and what they expect of it.
    const SECRET: [u8; 32] = *b"ABCDEFGHIJKLMNOPQRSTUVWXYZ123456";

    #[test]
    fn keys_are_those_of_pomerium() {
        let secret = SecretKey::from_bytes(SECRET);
        let server = Key::derived(&secret, Purpose::ServerKey, Some("*")).unwrap();
        assert_eq!(
            hex::encode(server.secret.to_bytes()),
            "b97d363d6998cccafdd1d9d7265c17568fb022f48aa0ecc87bc8032af824d5fe"
        );
        // The key identifier of the authority: the first 160 bits of the hash of its public key.
        let authority = Key::derived(&secret, Purpose::AuthorityKey, None).unwrap();
        let hash = hex::encode(Sha256::digest(&authority.public));
        assert!(hash.starts_with("9f2bc74ca605bb0e953109cda8cf8188954f654e"));
    }

    #[test]
    fn replicas_derive_the_same_certificates() {
        let derive = |secret: [u8; 32], name: &str| {
            let authority = DerivedAuthority::new(&SecretKey::from_bytes(secret)).unwrap();
            let server = authority.server(name).unwrap();
            (authority.certificate().clone(), server.cert)
        };
        let (authority, server) = derive(SECRET, "int.corp.test");
        assert_eq!(derive(SECRET, "int.corp.test"), (authority, server));
        let (_, leaf) = derive(SECRET, "int.corp.test");
        let (_, leaf) = X509Certificate::from_der(&leaf[0]).unwrap();
        assert_eq!(leaf.issuer().to_string(), "O=Pomerium, CN=Pomerium PSK CA");
        assert_ne!(derive([7; 32], "x.test").0, derive([8; 32], "x.test").0);
    }

    #[tokio::test]
    async fn who_knows_the_secret_trusts_the_server_and_nobody_else() {
        let connect = async |client: [u8; 32], server: [u8; 32], name: &str| {
            let authority = DerivedAuthority::new(&SecretKey::from_bytes(server)).unwrap();
            let names = ["int.corp.test".to_owned()];
            let shown = Arc::new(authority.server("int.corp.test").unwrap());
            let shown = SwapCertificates::new(Certificates::new([(names.as_slice(), shown)]));
            let server = server_config(shown, Alpn::H2, None).unwrap();
            let trusted = DerivedAuthority::new(&SecretKey::from_bytes(client)).unwrap();
            let trusted = Trust::nobody()
                .and(&[trusted.certificate().clone()], "derived")
                .unwrap();
            let client = client_config(&trusted, Alpn::H2, None).unwrap();
            handshake(client, server, name).await.is_ok()
        };
        assert!(connect(SECRET, SECRET, "int.corp.test").await);
        assert!(!connect([9; 32], SECRET, "int.corp.test").await);
        assert!(!connect(SECRET, SECRET, "other.corp.test").await);
    }
}
