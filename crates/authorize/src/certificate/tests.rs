use postern_common::config::MtlsEnforcement;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};

use super::*;

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn intermediate(of: &CertifiedIssuer<'static, KeyPair>) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "intermediate");
    CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), of).unwrap()
}

fn client(of: &CertifiedIssuer<'static, KeyPair>, purpose: ExtendedKeyUsagePurpose) -> Vec<u8> {
    let mut params = CertificateParams::new(vec!["dev.corp.test".to_owned()]).unwrap();
    params
        .subject_alt_names
        .push(SanType::Rfc822Name("ann@corp.test".try_into().unwrap()));
    params.extended_key_usages = vec![purpose];
    let key = KeyPair::generate().unwrap();
    params.signed_by(&key, of).unwrap().der().to_vec()
}

fn mtls(roots: &[&CertifiedIssuer<'static, KeyPair>]) -> DownstreamMtls {
    DownstreamMtls {
        roots: roots
            .iter()
            .map(|root| root.as_ref().der().clone())
            .collect(),
        revocation_lists: Vec::new(),
        enforcement: MtlsEnforcement::PolicyWithDefaultDeny,
        subject_alt_names: Vec::new(),
        max_depth: Some(1),
    }
}

fn examine(mtls: &DownstreamMtls, chain: Vec<Vec<u8>>) -> CertificateFact {
    let certificate = ClientCertificate { chain };
    CertificateExaminer::new(Some(mtls)).examine(Some(&certificate), Timestamp::now())
}

fn is_valid(fact: &CertificateFact) -> bool {
    matches!(fact, CertificateFact::Valid(_))
}

#[test]
fn without_a_ca_nothing_is_asked() {
    let examiner = CertificateExaminer::new(None);
    let now = Timestamp::now();
    assert_eq!(examiner.examine(None, now), CertificateFact::NotAsked(None));
    let shown = ClientCertificate {
        chain: vec![client(&authority("x"), ExtendedKeyUsagePurpose::ClientAuth)],
    };
    let fact = examiner.examine(Some(&shown), now);
    assert!(
        matches!(&fact, CertificateFact::NotAsked(Some(leaf)) if leaf.san_dns == ["dev.corp.test"])
    );
}

#[test]
fn s41_chain_purpose_and_issuer() {
    let ours = authority("ours");
    let config = mtls(&[&ours]);
    let good = client(&ours, ExtendedKeyUsagePurpose::ClientAuth);
    assert!(is_valid(&examine(&config, vec![good])));
    let server = client(&ours, ExtendedKeyUsagePurpose::ServerAuth);
    assert!(!is_valid(&examine(&config, vec![server])));
    let foreign = client(&authority("foreign"), ExtendedKeyUsagePurpose::ClientAuth);
    assert!(!is_valid(&examine(&config, vec![foreign])));
    let garbage = examine(&config, vec![vec![1, 2, 3]]);
    assert!(matches!(garbage, CertificateFact::Invalid(_)));
    let none = CertificateExaminer::new(Some(&config)).examine(None, Timestamp::now());
    assert_eq!(none, CertificateFact::Missing);
}

#[test]
fn s41_depth() {
    let root = authority("root");
    let below = intermediate(&root);
    let leaf = client(&below, ExtendedKeyUsagePurpose::ClientAuth);
    let chain = vec![leaf, below.as_ref().der().to_vec()];
    let mut config = mtls(&[&root]);
    assert!(
        !is_valid(&examine(&config, chain.clone())),
        "the default depth is 1"
    );
    config.max_depth = Some(2);
    assert!(is_valid(&examine(&config, chain.clone())));
    config.max_depth = None;
    assert!(is_valid(&examine(&config, chain)));
}

#[test]
fn s41_names() {
    let ours = authority("ours");
    let leaf = client(&ours, ExtendedKeyUsagePurpose::ClientAuth);
    let mut config = mtls(&[&ours]);
    for (kind, pattern, expected) in [
        (SubjectAltNameKind::Dns, r".*\.corp\.test", true),
        (SubjectAltNameKind::Dns, "dev", false),
        (SubjectAltNameKind::Email, "ann@corp.test", true),
        (SubjectAltNameKind::Uri, ".*", false),
    ] {
        config.subject_alt_names = vec![SubjectAltNameRule {
            kind,
            pattern: regex::Regex::new(pattern).unwrap(),
        }];
        assert_eq!(
            is_valid(&examine(&config, vec![leaf.clone()])),
            expected,
            "{kind:?} {pattern}"
        );
    }
}

#[test]
fn without_usable_roots_nothing_is_valid() {
    let ours = authority("ours");
    let leaf = client(&ours, ExtendedKeyUsagePurpose::ClientAuth);
    assert!(!is_valid(&examine(&mtls(&[]), vec![leaf])));
}
