//! Any provider that speaks OpenID Connect (`oidc`, `keycloak`).

use super::{Flavor, PLAIN};

pub(crate) const FLAVOR: Flavor = PLAIN;
