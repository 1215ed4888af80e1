//! Ids of sessions that are made from a provider's token: the same token gives the same session,
//! whichever replica of authorize meets it first.

use uuid::{Uuid, uuid};

/// What kind of token a session is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// `bearer_token_format: idp_access_token`.
    Access,
    /// `bearer_token_format: idp_identity_token`.
    Identity,
    /// `bearer_token_format: jwt`, of an entry of `identity_providers`.
    Jwt,
}

/// The session id for `token` of a provider: its id, or the name of its entry for [`TokenKind::Jwt`].
pub fn session_id(kind: TokenKind, provider: &str, token: &str) -> String {
    let namespace = match kind {
        TokenKind::Access => uuid!("0194f6f8-e760-76a0-8917-e28ac927a34d"),
        TokenKind::Identity => uuid!("0194f6f9-aec0-704e-bb4a-51054f17ad17"),
        TokenKind::Jwt => uuid!("0195a000-a000-7000-8000-00000000a01a"),
    };
    let provider = Uuid::new_v5(&namespace, provider.as_bytes());
    Uuid::new_v5(&provider, token.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        for (kind, id) in [
            (TokenKind::Access, "9486dd5c-593c-5c45-8dfb-27232525352b"),
            (TokenKind::Identity, "d95fe55d-b3d9-5bbc-9ed7-f1256a2bd448"),
            (TokenKind::Jwt, "5da6b2ab-2102-56e6-b949-b7d7ae57a5c9"),
        ] {
            assert_eq!(session_id(kind, "IDP", "TOKEN"), id);
        }
    }
}
