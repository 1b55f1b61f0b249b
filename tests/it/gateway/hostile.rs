//! Bodies and requests made to hurt: each gets a clear error, none gets memory or work, the gateway lives on.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Running, apple, error, start, value};

async fn lives_on(running: &Running) {
    let response = running.images(&apple()).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(value(response).await["data"][0]["b64_json"].is_string());
}

/// Sends bytes and reads what comes back until the other side closes or has answered.
async fn raw(running: &Running, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(running.gateway.address).await.unwrap();
    // The other side may close before it has read everything.
    let _ = socket.write_all(bytes).await;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match socket.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(n) => answer.extend_from_slice(&buffer[..n]),
        }
        let text = String::from_utf8_lossy(&answer);
        if text.contains("\r\n\r\n") && (text.contains("\"code\"") || text.contains("content-length: 0")) {
            break;
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn bodies_that_are_no_request() {
    let running = start().await;
    let deep = "[".repeat(20_000) + &"]".repeat(20_000);
    let cases: [(Vec<u8>, &str); 9] = [
        (b"".to_vec(), "invalid_json"),
        (b"{".to_vec(), "invalid_json"),
        (b"null".to_vec(), "invalid_json"),
        (b"[]".to_vec(), "missing_required_parameter"),
        (b"\"prompt\"".to_vec(), "invalid_json"),
        (vec![0xff; 300], "invalid_json"),
        (b"{\"prompt\":\"\xff\xfe\"}".to_vec(), "invalid_json"),
        (b"{\"prompt\":\"a\",\"prompt\":\"b\"}".to_vec(), "invalid_json"),
        (format!("{{\"prompt\":\"a\",\"n\":{deep}}}").into_bytes(), "invalid_type"),
    ];
    for path in ["/v1/images/generations", "/v1/embeddings"] {
        for (body, _code) in &cases {
            let request = running.http.post(running.url(path)).bearer_auth(&running.key).body(body.clone());
            let (status, error) = error(request.send().await.unwrap()).await;
            assert_eq!(status, 400, "{error}");
            assert!(error["message"].as_str().unwrap().len() < 1_000);
        }
    }
    assert!(running.local.tasks.lock().is_empty());
    lives_on(&running).await;
}

#[tokio::test]
async fn bodies_that_are_too_large() {
    let running = start().await;
    // Announced, and over the limit.
    let body = json!({ "prompt": "x".repeat(100_000) });
    let (status, large) = error(running.images(&body).send().await.unwrap()).await;
    assert_eq!((status.as_u16(), large["code"].as_str()), (413, Some("request_too_large")));
    assert!(large["message"].as_str().unwrap().contains("65536"));
    // Not announced: chunks.
    let head = format!(
        "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nTransfer-Encoding: chunked\r\n\r\n",
        running.key
    );
    let chunk = format!("4000\r\n{}\r\n", " ".repeat(0x4000));
    let answer = raw(&running, (head + &chunk.repeat(64) + "0\r\n\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    // Announced as more than anybody would read: refused without reading.
    let head = format!(
        "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 99999999999\r\n\r\n",
        running.key
    );
    let answer = raw(&running, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    // A stranger's body is not read at all.
    let head = "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n";
    let answer = raw(&running, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    lives_on(&running).await;
}

#[tokio::test]
async fn bytes_that_are_no_http() {
    let running = start().await;
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    ] {
        let answer = raw(&running, bytes).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let long = format!("GET / HTTP/1.1\r\nX-Long: {}\r\n\r\n", "x".repeat(200_000));
    let answer = raw(&running, long.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let many: String = (0..500).map(|i| format!("X-{i}: y\r\n")).collect();
    let answer = raw(&running, format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    lives_on(&running).await;
}

#[tokio::test]
async fn a_body_that_breaks_off_costs_nothing() {
    let running = start().await;
    let head = format!(
        "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 50\r\n\r\n{{\"pro",
        running.key
    );
    let mut socket = TcpStream::connect(running.gateway.address).await.unwrap();
    socket.write_all(head.as_bytes()).await.unwrap();
    super::until("the request is let in", || {
        running.gateway.ledger.holder(&running.key).unwrap().usage.requests == 1
    })
    .await;
    drop(socket);
    lives_on(&running).await;
    assert_eq!(running.local.tasks.lock().len(), 1);
    assert_eq!(running.gateway.ledger.holder(&running.key).unwrap().usage.images, 1);
}

#[tokio::test]
async fn pictures_that_are_bombs() {
    let running = start().await;
    // A real bomb: 8,192 x 8,192 pixels of one colour, a few hundred kilobytes of PNG, and one by its header.
    let bomb = super::api::png(8192, 8192, [0, 0, 0]);
    assert!(bomb.len() < 2_000_000, "{}", bomb.len());
    let mut lying = super::api::png(16, 16, [0, 0, 0]);
    lying[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    let truncated = super::api::png(300, 300, [9, 9, 9])[..120].to_vec();
    let svg = b"<svg xmlns='http://www.w3.org/2000/svg' width='10' height='10'/>".to_vec();
    for picture in [bomb, lying, truncated, svg, vec![0; 5_000]] {
        let body = json!({ "input": STANDARD.encode(picture) });
        let (status, error) = error(running.post("/v1/embeddings", &body).send().await.unwrap()).await;
        assert_eq!((status.as_u16(), error["code"].as_str()), (400, Some("invalid_image")), "{error}");
        assert_eq!(error["param"], "input[0]");
    }
    assert!(running.local.tasks.lock().is_empty());
    lives_on(&running).await;
}

#[tokio::test]
async fn what_a_client_wrote_comes_back_as_json_and_never_as_a_page() {
    let running = start().await;
    let script = "<script>alert(1)</script>";
    for request in [
        running.get(&format!("/{script}")),
        running.get(&format!("/v1/models/{script}")),
        running.images(&json!({ "prompt": "x", "model": script })),
        running.images(&json!({ "prompt": "x", script: 1 })),
    ] {
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        assert!(response.status().is_client_error());
    }
}
