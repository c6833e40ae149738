//! Traces by OTLP: agent, bridge and upstream in one, and a collector that is not there disturbs nobody.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use paperclip_bridge_tests::serving::{Serving, agent};
use paperclip_bridge_tests::{Upstream, eventually};
use prost::Message as _;
use tokio::net::TcpListener;

use super::SOON;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

async fn traced(collector: &str) -> Serving {
    Serving::builder()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector)
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-key=collector-key")
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=tests")
        .env("OTEL_BSP_SCHEDULE_DELAY", "50")
        .start()
        .await
}

/// Every span that a collector was sent, and all that stood beside them.
fn spans(collector: &Upstream) -> Vec<Span> {
    let sent = collector.seen().into_iter().filter(|seen| seen.whole);
    sent.flat_map(|seen| {
        assert_eq!(
            (seen.method.as_str(), seen.target.as_str()),
            ("POST", "/v1/traces")
        );
        assert_eq!(seen.header("x-key"), Some("collector-key"));
        let sent = ExportTraceServiceRequest::decode(seen.body.as_slice()).expect("it is OTLP");
        sent.resource_spans
    })
    .flat_map(|of_resource| {
        let resource = of_resource.resource.expect("it says whose spans they are");
        let told = format!("{resource:?}");
        assert!(told.contains("paperclip-bridge") && told.contains("deployment.environment.name"));
        of_resource.scope_spans
    })
    .flat_map(|of_scope| of_scope.spans)
    .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
    let value = found.value.clone()?.value?;
    if let Value::StringValue(text) = value {
        return Some(text);
    }
    let Value::IntValue(number) = value else {
        panic!("{value:?}")
    };
    Some(number.to_string())
}

#[tokio::test]
async fn one_trace_joins_the_agent_s_call_the_bridge_and_the_upstream() {
    let (upstream, collector) = (Upstream::start().await, Upstream::start().await);
    let serving = traced(&collector.url()).await;
    let opened = serving.session(&upstream, &[]).await;
    let agent = agent(&opened);

    let headers = [("traceparent", PARENT), ("tracestate", "vendor=1")];
    let path = "/api/issues/PAP-1?q=secret-query";
    let answer = agent.call("GET", path, &headers, b"").await.unwrap();
    let denied = agent.call("GET", "/api/none/such", &headers, b"").await.unwrap();

    assert_eq!((answer.status, denied.status), (200, 403));
    let seen = upstream.seen();
    let sent: Vec<_> = seen[0].header("traceparent").unwrap().split('-').collect();
    assert_eq!((sent[0], sent[1], sent[3]), ("00", TRACE, "01"));
    assert_eq!(seen[0].header("tracestate"), Some("vendor=1"));
    let spans = eventually(SOON, "both spans come", || {
        Some(spans(&collector)).filter(|spans| spans.len() >= 2)
    })
    .await;
    for span in &spans {
        assert_eq!(
            (hex(&span.trace_id), hex(&span.parent_span_id)),
            (TRACE.into(), "00f067aa0ba902b7".into())
        );
        assert_eq!(
            attribute(span, "paperclip.session").as_deref(),
            Some(opened.session.as_str())
        );
    }
    assert_eq!(hex(&spans[0].span_id), sent[2]);
    assert_eq!(spans[0].name, "GET /api/issues/{issue}");
    assert_eq!(
        attribute(&spans[0], "http.response.status_code").as_deref(),
        Some("200")
    );
    assert_eq!(
        attribute(&spans[0], "paperclip.verdict").as_deref(),
        Some("allow")
    );
    assert_eq!(spans[1].name, "GET");
    assert_eq!(
        attribute(&spans[1], "error.type").as_deref(),
        Some("route_not_allowed")
    );
    let told: Vec<u8> = collector.seen().into_iter().flat_map(|seen| seen.body).collect();
    let told = String::from_utf8_lossy(&told).into_owned();
    for secret in ["secret-query", "PAP-1", &opened.token] {
        assert!(!told.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn a_call_without_a_valid_parent_begins_a_trace_of_its_own() {
    let (upstream, collector) = (Upstream::start().await, Upstream::start().await);
    let serving = traced(&collector.url()).await;
    let opened = serving.session(&upstream, &[]).await;

    for parent in ["00-0-0-00", &PARENT.to_uppercase()] {
        let headers = [("traceparent", parent), ("tracestate", "vendor=1")];
        let answer = agent(&opened)
            .call("GET", "/api/agents/me", &headers, b"")
            .await
            .unwrap();
        assert_eq!(answer.status, 200);
    }

    for seen in upstream.seen() {
        let sent = seen.header("traceparent").unwrap();
        assert!(sent.len() == PARENT.len() && !sent.contains(TRACE), "{sent}");
        assert_eq!((seen.count("traceparent"), seen.header("tracestate")), (1, None));
    }
    // What is left is sent at the end.
    serving.ask(&["drain", "--wait"]).await;
    let ended = serving.running.finish().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let spans = spans(&collector);
    assert_eq!(spans.len(), 2);
    assert!(spans.iter().all(|span| span.parent_span_id.is_empty()));
}

#[tokio::test]
async fn a_collector_that_is_not_there_or_does_not_answer_disturbs_nothing() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = gone.local_addr().unwrap();
    // Takes connections and says nothing.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for collector in [gone, mute.local_addr().unwrap()] {
        let upstream = Upstream::start().await;
        let serving = traced(&format!("http://{collector}")).await;
        let opened = serving.session(&upstream, &[]).await;

        for _ in 0..20 {
            assert_eq!(agent(&opened).get("/api/agents/me").await.unwrap().status, 200);
        }

        serving.ask(&["drain", "--wait"]).await;
        let ended = serving.running.finish().await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn without_a_collector_a_trace_passes_as_it_is() {
    let (upstream, serving) = (Upstream::start().await, Serving::start().await);
    let opened = serving.session(&upstream, &[]).await;

    let headers = [("traceparent", PARENT)];
    agent(&opened)
        .call("GET", "/api/agents/me", &headers, b"")
        .await
        .unwrap();

    assert_eq!(upstream.seen()[0].header("traceparent"), Some(PARENT));
}
