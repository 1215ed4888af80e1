use super::*;
use crate::crypto::vectors::{T, at, k};
use proptest::prelude::*;

fn url(text: &str) -> Url {
    Url::parse(text).unwrap()
}

fn sign_in() -> Url {
    let mut url = url("https://authenticate.example.com/.pomerium/sign_in");
    url.query_pairs_mut()
        .append_pair(param::REDIRECT_URI, "https://app.example.com/a%20b?x=1&y=2")
        .append_pair(param::IDP_ID, "IDP");
    url
}

#[test]
fn known_answer_of_pomerium() {
    let text = message(
        "https://pomerium.io",
        [(param::ISSUED, "1574117851"), (param::EXPIRY, "1574118151")].into_iter(),
        "1574117851",
        "1574118151",
    );
    let tag = mac(b"test-key", &text).finalize().into_bytes();
    assert_eq!(
        B64_URL_PADDED.encode(tag),
        "XtvM-Y-oPvoGGV2Q5G0vrQ_CgNeYhVyTG5dHIqLsBOU="
    );
}

#[test]
fn known_answer() {
    let signed = sign(&k(), &sign_in(), at(T));
    assert_eq!(
        signed.as_str(),
        "https://authenticate.example.com/.pomerium/sign_in?pomerium_expiry=1767225900&pomerium_idp_id=IDP&pomerium_issued=1767225600&pomerium_redirect_uri=https%3A%2F%2Fapp.example.com%2Fa%2520b%3Fx%3D1%26y%3D2&pomerium_signature=ihwZpwoeVZMXZF7izYrkFbjk6s3uTex86_3XXdPw38I%3D"
    );
    let verified = verify(&[k()], &signed, at(T)).unwrap();
    assert_eq!(
        verified.get(param::REDIRECT_URI),
        Some("https://app.example.com/a%20b?x=1&y=2")
    );
    assert_eq!(verified.get(param::SIGNATURE), None);
    // the same again when signed anew
    assert_eq!(sign(&k(), &signed, at(T)), signed);
}

#[test]
fn known_callback() {
    let text = "https://app.example.com/.pomerium/callback/?pomerium_additional_hosts=&pomerium_expiry=1767225900&pomerium_issued=1767225600&pomerium_redirect_uri=https%3A%2F%2Fapp.example.com%2F&pomerium_session_encrypted=MoEqLYLmLZhdQE4yLmbKJsA6D6zq-TKAgYKDhIWGh4iJiouMjY6PkJGSk5SVlpc%3D&pomerium_signature=6n4sFZb5RdpO_zq0wl_6gm0YbBAh1nDtIfq936EMsUw%3D";
    let received = url(text);
    verify_received(
        &[k()],
        "app.example.com",
        "/.pomerium/callback/",
        received.query().unwrap(),
        at(T + 10),
    )
    .unwrap();
    let mut unsigned = url("https://app.example.com/.pomerium/callback/");
    unsigned
        .query_pairs_mut()
        .append_pair(param::ADDITIONAL_HOSTS, "")
        .append_pair(
            param::SESSION_ENCRYPTED,
            "MoEqLYLmLZhdQE4yLmbKJsA6D6zq-TKAgYKDhIWGh4iJiouMjY6PkJGSk5SVlpc=",
        )
        .append_pair(param::REDIRECT_URI, "https://app.example.com/");
    assert_eq!(sign(&k(), &unsigned, at(T)).as_str(), text);
}

#[test]
fn s14_times() {
    let signed = sign(&k(), &sign_in(), at(T));
    let check = |seconds| verify(&[k()], &signed, at(seconds)).map(|_| ());
    assert_eq!(check(T - 61), Err(SignatureError::NotYet));
    assert_eq!(check(T - 60), Ok(()));
    assert_eq!(check(T + 360), Ok(()));
    assert_eq!(check(T + 361), Err(SignatureError::Expired));
}

#[test]
fn s14_another_host_or_path() {
    let signed = sign(&k(), &sign_in(), at(T));
    let query = signed.query().unwrap();
    let check = |host, path| verify_received(&[k()], host, path, query, at(T)).map(|_| ());
    assert_eq!(
        check("authenticate.example.com", "/.pomerium/sign_in"),
        Ok(())
    );
    assert_eq!(
        check("Authenticate.example.com", "/.pomerium/sign_in"),
        Ok(())
    );
    for (host, path) in [
        ("evil.example.com", "/.pomerium/sign_in"),
        ("authenticate.example.com:443", "/.pomerium/sign_in"),
        ("authenticate.example.com", "/.pomerium/sign_out"),
        ("authenticate.example.com", "/.pomerium/sign_in/"),
    ] {
        assert_eq!(
            check(host, path),
            Err(SignatureError::Signature),
            "{host}{path}"
        );
    }
    assert_eq!(
        check("authenticate.example.com/.pomerium", "/sign_in"),
        Err(SignatureError::Malformed)
    );
}

#[test]
fn s14_parameters_added_removed_doubled() {
    let signed = sign(&k(), &sign_in(), at(T));
    let query = signed.query().unwrap().to_owned();
    let check = |query: &str| {
        verify_received(
            &[k()],
            "authenticate.example.com",
            "/.pomerium/sign_in",
            query,
            at(T),
        )
        .map(|_| ())
    };
    assert_eq!(check(&query), Ok(()));
    for changed in [
        format!("{query}&pomerium_programmatic=true"),
        format!("{query}&pomerium_redirect_uri=https%3A%2F%2Fevil.example"),
        format!("pomerium_redirect_uri=https%3A%2F%2Fevil.example&{query}"),
        query.replace("pomerium_idp_id=IDP&", ""),
        query.replace(
            "pomerium_idp_id=IDP",
            "pomerium_idp_id=IDP&pomerium_idp_id=IDP",
        ),
        query.replace("pomerium_expiry=1767225900", "pomerium_expiry=1767225901"),
    ] {
        assert_eq!(check(&changed), Err(SignatureError::Signature), "{changed}");
    }
    for changed in [
        format!("{query}&a=%zz"),
        format!("{query}&a;b"),
        format!("{query}&pomerium_expiry=1867225900"),
        format!("{query}&pomerium_signature=AAAA"),
    ] {
        assert_eq!(check(&changed), Err(SignatureError::Malformed), "{changed}");
    }
    let unsigned = query.split("&pomerium_signature").next().unwrap();
    assert_eq!(check(unsigned), Err(SignatureError::Missing));
    // Another order or another way to escape is the same URL.
    let mut pairs: Vec<&str> = query.split('&').collect();
    pairs.reverse();
    assert_eq!(check(&pairs.join("&").replace("IDP", "%49DP")), Ok(()));
}

#[test]
fn s14_values_of_one_parameter_keep_their_order() {
    let signed = sign(&k(), &url("https://a.example/?v=1&v=2"), at(T));
    let swapped = signed.query().unwrap().replace("v=1&v=2", "v=2&v=1");
    assert_eq!(
        verify_received(&[k()], "a.example", "/", &swapped, at(T)),
        Err(SignatureError::Signature)
    );
}

#[test]
fn rotation_verifies_with_every_key() {
    let signed = sign(&k(), &sign_in(), at(T));
    let other = SecretKey::random();
    assert!(verify(&[other.clone(), k()], &signed, at(T)).is_ok());
    assert_eq!(
        verify(&[other], &signed, at(T)),
        Err(SignatureError::Signature)
    );
    assert_eq!(verify(&[], &signed, at(T)), Err(SignatureError::Signature));
}

proptest! {
    #[test]
    fn what_is_signed_verifies(pairs: Vec<(String, String)>, path in "[a-z/.]{0,20}") {
        let mut url = url(&format!("https://a.example/{path}"));
        url.query_pairs_mut().extend_pairs(&pairs);
        let signed = sign(&k(), &url, at(T));
        prop_assert!(verify(&[k()], &signed, at(T)).is_ok());
        prop_assert!(verify_received(
            &[k()], "a.example", signed.path(), signed.query().unwrap(), at(T),
        ).is_ok());
    }

    #[test]
    fn verifying_never_panics(host in ".{0,30}", path in ".{0,30}", query in ".{0,200}") {
        prop_assert!(verify_received(&[k()], &host, &path, &query, at(T)).is_err());
    }
}
