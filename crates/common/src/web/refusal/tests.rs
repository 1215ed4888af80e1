use super::*;
use crate::config::Branding;

const ID: &str = "0195a000-a000-7000-8000-00000000a01a";

fn refusal(status: u16, reason: &str) -> Refusal {
    Refusal::new(StatusCode::from_u16(status).unwrap(), reason, ID.into())
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap()))
        .collect()
}

fn respond(refusal: Refusal, pairs: &[(&'static str, &str)]) -> (Response<Bytes>, String) {
    let response = refusal.respond(&headers(pairs), &Look::new(&Branding::default()));
    let body = String::from_utf8(response.body().to_vec()).unwrap();
    (response, body)
}

const FORMS: [&[(&str, &str)]; 6] = [
    &[("accept", "text/html")],
    &[("accept", "application/json")],
    &[("accept", "text/plain")],
    &[("content-type", "application/grpc")],
    &[("content-type", "application/grpc-web")],
    &[("user-agent", "kubectl kubernetes/1")],
];

#[test]
fn every_form_tells_reason_and_request_id() {
    for pairs in FORMS {
        let (response, body) = respond(refusal(403, "Not for you"), pairs);
        assert_eq!(response.headers()[request_id::HEADER], ID);
        assert_eq!(response.headers()[INTERCEPTED], "true");
        let message = response
            .headers()
            .get("grpc-message")
            .map(|m| m.to_str().unwrap());
        let told = message.unwrap_or(&body);
        assert!(
            told.contains("Not for you") && told.contains(ID),
            "{pairs:?}: {told}"
        );
        match message {
            Some(_) => assert_eq!(response.status(), 200),
            None => assert_eq!(response.status(), 403),
        }
    }
}

#[test]
fn json_has_the_members_of_its_origin() {
    let json = |origin| {
        let refusal = refusal(404, "No such page")
            .origin(origin)
            .code("route_not_found");
        let (_, body) = respond(refusal, &[("accept", "application/json")]);
        serde_json::from_str::<Value>(&body).unwrap()
    };
    assert_eq!(
        json(Origin::Policy),
        json!({"error": "No such page", "request_id": ID})
    );
    assert_eq!(
        json(Origin::DataPlane),
        json!({"requestId": ID, "status": "404", "statusText": "route_not_found"})
    );
    assert_eq!(
        json(Origin::Endpoint),
        json!({"Status": 404, "description": "No such page", "RequestID": ID})
    );
}

#[test]
fn c25_programs_learn_where_to_sign_in() {
    let url = "https://authenticate.example.com/.pomerium/sign_in?a=b";
    let refusal = refusal(401, "Sign in first").sign_in_url(Some(url.into()));
    let (response, body) = respond(refusal, &[("sec-fetch-mode", "cors"), ("accept", "*/*")]);
    assert_eq!(response.status(), 401);
    assert_eq!(response.headers()[SIGN_IN_URL], url);
    assert_eq!(
        serde_json::from_str::<Value>(&body).unwrap()["sign_in_url"],
        url
    );
    assert!(response.headers().get(header::LOCATION).is_none());
}

#[test]
fn grpc_status_follows_http() {
    for (http, grpc) in [
        (400, "13"),
        (401, "16"),
        (403, "7"),
        (404, "12"),
        (503, "14"),
        (500, "2"),
    ] {
        let (response, body) = respond(
            refusal(http, "ä 100%"),
            &[("content-type", "application/grpc")],
        );
        assert_eq!(response.headers()["grpc-status"], grpc);
        let message = response.headers()["grpc-message"].to_str().unwrap();
        assert!(message.starts_with("%C3%A4 100%25"), "{message}");
        assert!(body.is_empty());
    }
    let (response, _) = respond(
        refusal(503, "x").grpc_status(1),
        &[("content-type", "application/grpc")],
    );
    assert_eq!(response.headers()["grpc-status"], "1");
}

#[test]
fn unavailable_says_when_to_come_back() {
    for pairs in FORMS {
        let (response, _) = respond(refusal(503, "Try again"), pairs);
        assert_eq!(response.headers()[header::RETRY_AFTER], "5", "{pairs:?}");
    }
    let (response, _) = respond(refusal(403, "No"), FORMS[0]);
    assert!(response.headers().get(header::RETRY_AFTER).is_none());
}

#[test]
fn own_statuses_have_a_text() {
    let (response, body) = respond(refusal(495, "No certificate"), FORMS[0]);
    assert_eq!(response.status().as_u16(), 495);
    assert!(body.contains("Client Certificate Required"));
    assert!(
        respond(refusal(450, "x"), FORMS[0])
            .1
            .contains("Device Not Authorized")
    );
}

#[test]
fn s45_what_others_wrote_is_escaped() {
    let evil = "<script>alert(1)</script>\"'&";
    let refusal = refusal(400, evil).details(Some(evil.into())).link(Link {
        href: format!("/{evil}"),
        text: "Go on",
    });
    let (response, body) = respond(refusal, FORMS[0]);
    assert!(!body.contains("<script"), "{body}");
    let csp = response.headers()[header::CONTENT_SECURITY_POLICY]
        .to_str()
        .unwrap();
    assert!(csp.contains("default-src 'none'") && csp.contains("frame-ancestors 'none'"));
    assert!(!csp.contains("unsafe-inline"));
}

#[test]
fn headers_of_the_caller_do_not_replace_ours() {
    let refusal = refusal(403, "No")
        .header(INTERCEPTED, "false".parse().unwrap())
        .header(header::SET_COOKIE, "a=1".parse().unwrap())
        .header(header::SET_COOKIE, "b=2".parse().unwrap())
        .header(header::CONTENT_TYPE, "text/evil".parse().unwrap());
    let (response, _) = respond(refusal, FORMS[0]);
    assert_eq!(response.headers()[INTERCEPTED], "true");
    assert_eq!(
        response
            .headers()
            .get_all(header::SET_COOKIE)
            .iter()
            .count(),
        2
    );
    assert_eq!(
        response
            .headers()
            .get_all(header::CONTENT_TYPE)
            .iter()
            .count(),
        1
    );
}
