//! The HTTP server: two things to get, nothing to change.
//!
//! One thread with a runtime of its own, which shares nothing with the paths that data take.
//! Bounded: [`CONNECTIONS`] at a time, [`PATIENCE`] each, one request on each; a head as long as
//! hyper allows.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};

use super::Figures;
use super::text;
use crate::error::{NodeError, Result};
use crate::node::Node;

/// Connections at a time; more wait.
const CONNECTIONS: usize = 16;
/// A connection takes at most this long.
const PATIENCE: Duration = Duration::from_secs(10);
/// After an error of the listener.
const PAUSE: Duration = Duration::from_millis(100);

/// What is told.
#[derive(Clone)]
struct Told {
    node: Weak<Node>,
    figures: Arc<Figures>,
}

/// The server; dropped, it ends.
pub struct Http {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Http {
    /// Listens at `address` and answers for `node`.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn start(address: SocketAddr, node: &Arc<Node>, figures: Arc<Figures>) -> Result<Http> {
        let failed = |source| NodeError::Metrics { address, source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let listener = runtime
            .block_on(TcpListener::bind(address))
            .map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let told = Told {
            node: Arc::downgrade(node),
            figures,
        };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("http".into())
            .spawn(move || runtime.block_on(serve(listener, told, stopped)))
            .map_err(NodeError::Thread)?;
        tracing::info!(%address, "metrics");
        Ok(Http {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, told: Told, mut stopped: oneshot::Receiver<()>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit, listener.accept().await)
        };
        tokio::select! {
            _ = &mut stopped => return,
            (permit, accepted) = accepted => match (permit, accepted) {
                (Ok(permit), Ok((stream, _))) => {
                    let told = told.clone();
                    tokio::spawn(async move {
                        let served = tokio::time::timeout(PATIENCE, one(stream, told)).await;
                        if let Ok(Err(error)) = served {
                            tracing::debug!(%error, "a question over HTTP");
                        }
                        drop(permit);
                    });
                }
                // Out of file descriptors, or a client that went away: the next one may do.
                (_, error) => {
                    tracing::debug!(error = ?error.err(), "no connection for metrics");
                    tokio::time::sleep(PAUSE).await;
                }
            },
        }
    }
}

async fn one(stream: TcpStream, told: Told) -> hyper::Result<()> {
    let answer = service_fn(move |request: Request<Incoming>| {
        let told = told.clone();
        async move { Ok::<_, Infallible>(answer(&told, &request)) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer)
        .await
}

fn answer(told: &Told, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
    const JSON: &str = "application/json";
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let body = "only GET is answered\n".to_owned();
        return response(StatusCode::METHOD_NOT_ALLOWED, TEXT, body);
    }
    let Some(node) = told.node.upgrade() else {
        return response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "it stops\n".into());
    };
    match request.uri().path() {
        "/metrics" => {
            let page = text::page(&node.cluster(), &told.figures.all());
            response(StatusCode::OK, TEXT, page)
        }
        "/healthz" => {
            let (healthy, problems) = text::health(&node.report());
            let status = match healthy {
                true => StatusCode::OK,
                false => StatusCode::SERVICE_UNAVAILABLE,
            };
            let said = serde_json::json!({
                "node": node.name(),
                "healthy": healthy,
                "problems": problems,
            });
            response(status, JSON, format!("{said}\n"))
        }
        _ => {
            let body = "there are /metrics and /healthz\n".to_owned();
            response(StatusCode::NOT_FOUND, TEXT, body)
        }
    }
}

fn response(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
