//! The id of an identity provider: a hash of its settings.
//!
//! Every service computes it for itself, so it must come out the same everywhere, Pomerium's
//! services included: a difference would send people through sign-in without end.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

/// The settings that make a provider the one it is. What is not configured stays empty here:
/// defaults are not filled in.
#[derive(Debug, Clone, Copy)]
pub struct ProviderFields<'a> {
    pub client_id: &'a str,
    pub client_secret: &'a str,
    /// `idp_provider`.
    pub kind: &'a str,
    pub scopes: &'a [String],
    /// `idp_provider_url`.
    pub url: &'a str,
    pub request_params: &'a BTreeMap<String, String>,
    /// External URL of authenticate, in the text form in which it is configured: a final slash
    /// counts.
    pub authenticate_url: &'a str,
}

/// base62 of the SHA-256 of the settings, encoded as message `pomerium.identity.Provider`.
pub fn provider_id(fields: &ProviderFields<'_>) -> String {
    base62(&Sha256::digest(encode(fields)))
}

fn encode(fields: &ProviderFields<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    text(2, fields.client_id, &mut out);
    text(3, fields.client_secret, &mut out);
    text(4, fields.kind, &mut out);
    for scope in fields.scopes {
        bytes(5, scope.as_bytes(), &mut out);
    }
    text(7, fields.url, &mut out);
    for (name, value) in fields.request_params {
        let mut entry = Vec::new();
        bytes(1, name.as_bytes(), &mut entry);
        bytes(2, value.as_bytes(), &mut entry);
        bytes(8, &entry, &mut out);
    }
    text(9, fields.authenticate_url, &mut out);
    if fields.kind == "github" {
        // version: github's user ids changed once
        out.extend_from_slice(&[11 << 3, 1]);
    }
    out
}

fn text(number: u8, value: &str, out: &mut Vec<u8>) {
    if !value.is_empty() {
        bytes(number, value.as_bytes(), out);
    }
}

/// A length-delimited field of protobuf.
fn bytes(number: u8, value: &[u8], out: &mut Vec<u8>) {
    out.push(number << 3 | 2);
    prost::encoding::encode_varint(u64::try_from(value.len()).unwrap_or(u64::MAX), out);
    out.extend_from_slice(value);
}

const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// Takes six bits at a time from the low end; groups that would need a 63rd or 64th letter take
/// five.
fn base62(number: &[u8]) -> String {
    let bit = |at: usize| {
        number
            .iter()
            .rev()
            .nth(at / 8)
            .map_or(0, |byte| usize::from(byte >> (at % 8) & 1))
    };
    let total = number.len() * 8;
    let mut out = String::new();
    let mut at = 0;
    while at < total {
        let remaining = total - at;
        let mut group = (0..remaining.min(6)).fold(0, |sum, i| sum | bit(at + i) << i);
        let mut taken = 6;
        if group & 0x1e == 0x1e && (remaining > 6 || group > 0x1f) {
            group &= 0x1f;
            taken = 5;
        }
        out.extend(ALPHABET.get(group).map(|letter| char::from(*letter)));
        at += taken;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answer_of_pomerium() {
        let id = provider_id(&ProviderFields {
            client_id: "https://authenticate.example.com",
            client_secret: "dR0xnpwDSEWtwK/Gve7jL/u0p/ja3j4oW0i83AtdrJe28XFBWG8BQT5cqn11fzBUJqwkY9SBei/DTpo1FxvOAw",
            kind: "hosted",
            scopes: &[],
            url: "https://authenticate.pomerium.app",
            request_params: &BTreeMap::new(),
            authenticate_url: "https://authenticate.example.com",
        });
        assert_eq!(id, "MYyOB5SZpAVTcgxvNqn06lhNq0VdantTikkv6QN0Z9B");
    }

    #[test]
    fn known_answer() {
        let scopes = ["openid".to_owned(), "email".to_owned()];
        let request_params = BTreeMap::from([
            ("prompt".to_owned(), "login".to_owned()),
            ("a".to_owned(), "1".to_owned()),
        ]);
        let fields = ProviderFields {
            client_id: "client-1",
            client_secret: "secret-1",
            kind: "oidc",
            scopes: &scopes,
            url: "https://idp.example.com",
            request_params: &request_params,
            authenticate_url: "https://authenticate.example.com",
        };
        assert_eq!(
            hex::encode(encode(&fields)),
            "1208636c69656e742d311a087365637265742d3122046f6964632a066f70656e69642a05656d61696c3a1768747470733a2f2f6964702e6578616d706c652e636f6d42060a0161120131420f0a0670726f6d707412056c6f67696e4a2068747470733a2f2f61757468656e7469636174652e6578616d706c652e636f6d"
        );
        assert_eq!(
            provider_id(&fields),
            "bg8Wp6PYR2qnYILSri8KUwckGhxMxCj02VtXF1wadyB"
        );
        // github's ids carry a version, and nothing that is not configured counts
        let github = ProviderFields {
            kind: "github",
            ..fields
        };
        assert_eq!(encode(&github).last_chunk(), Some(&[0x58, 1]));
    }
}
