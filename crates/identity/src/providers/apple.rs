//! Apple. Answers with a cross-site POST, has no user info and no sign-out page. Unlike in
//! Pomerium its ID token is verified, as everyone's.

use super::{Flavor, PLAIN};

pub(crate) const FLAVOR: Flavor = Flavor {
    name: "apple",
    default_url: Some("https://appleid.apple.com"),
    scopes: |_| &["name", "email"],
    params: &[("response_mode", "form_post")],
    merge_params: true,
    ..PLAIN
};
