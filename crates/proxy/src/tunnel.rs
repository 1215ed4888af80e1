//! CONNECT on `tcp+https` routes to `tcp://` upstreams: raw bytes, after a permit like any other.
//! Where the upstream is another proxy (`http://`, `https://`), CONNECT is forwarded to it like any
//! request that wants an upgrade.

use std::rc::Rc;

use http::Response;
use postern_common::config::{UpstreamProtocol, UpstreamTarget};
use tokio::time::timeout;

use crate::body::Body;
use crate::core::Core;
use crate::forward::exchange::Timeouts;
use crate::forward::{failures::unavailable, retry::Tries};
use crate::limits;
use crate::permit::Permitted;
use crate::refuse::Stop;
use crate::serve::{Headers, Reply};
use crate::upgrade;
use crate::upstream::{Cluster, connect};

/// Whether the upstream takes the bytes of the tunnel; loading refuses mixtures.
pub(crate) fn is_raw(cluster: &Cluster) -> bool {
    let mut members = cluster.members.iter();
    members.all(|member| member.endpoint.protocol == UpstreamProtocol::Tcp)
}

/// Connects, then answers 200; the bytes flow once the client has read it.
pub(crate) async fn open(
    core: &Rc<Core>,
    permitted: Permitted,
    cluster: &Cluster,
    target: &UpstreamTarget,
) -> Result<Reply, Stop> {
    let mut extensions = permitted.extensions;
    let client = upgrade::of_client(&mut extensions);
    let tries = Tries::new(cluster, &core.pool, permitted.allow.session.as_deref());
    let mut left = limits::UPSTREAM_TRIES;
    let stream = loop {
        left -= 1;
        let (member, address) = tries.pick().await?;
        let endpoint = &member.endpoint;
        let connecting = connect::tcp(endpoint, address);
        let connected = timeout(limits::UPSTREAM_CONNECT, connecting).await;
        core.pool
            .connected(endpoint.id, address, matches!(connected, Ok(Ok(_))));
        let reason = match connected {
            Ok(Ok(stream)) => break stream,
            Ok(Err(error)) => postern_common::telemetry::log::chain(&error),
            Err(_) => format!("no connection to {} ({address}) in time", endpoint.name),
        };
        if left == 0 {
            return Err(unavailable(reason));
        }
    };
    let timeouts = Timeouts {
        total: target.timeout,
        idle: target.idle_timeout,
        ..Timeouts::default()
    };
    let tunnel = upgrade::to_tcp(client, stream, permitted.open, timeouts);
    Ok(Reply {
        response: Response::new(Body::empty()),
        headers: Headers::Route,
        details: "via_upstream",
        tunnel: Some(Box::new(tunnel)),
    })
}
