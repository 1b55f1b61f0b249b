//! Files of a repository on a Hugging Face hub, at a commit.
//!
//! The hub's own client finds and describes them; their bytes come as all others do, since it neither
//! bounds what it is sent nor notices a server that starts over.

use argus_models::{registry::FilePin, verified::FileProblem};
use hf_hub::{
    Repo, RepoType,
    api::sync::{Api, ApiBuilder, ApiError},
};

use super::{
    FetchError, Place, Settings, Watch,
    download::{Remote, agent, download},
};

pub(super) fn fetch(
    repository: &str,
    revision: &str,
    wanted: &[&FilePin],
    place: &Place,
    settings: &Settings,
    watch: &mut dyn Watch,
) -> Result<(), FetchError> {
    let api = ApiBuilder::new()
        .with_endpoint(settings.hub.clone())
        .with_cache_dir(place.partial.clone())
        .with_token(settings.token.clone())
        .with_progress(false)
        .with_user_agent("argus", env!("CARGO_PKG_VERSION"))
        .build()
        .map_err(failed)?;
    let repo = Repo::with_revision(repository.to_owned(), RepoType::Model, revision.to_owned());
    let files = api.repo(repo);
    let agent = agent();
    for pin in wanted {
        let name = pin.member.as_ref().unwrap_or(&pin.path);
        let url = files.url(name);
        check_offer(&api, &url, revision, pin)?;
        // By its hash, so that what is half there is carried on with whatever else is wanted next time.
        let came = place.partial.join(pin.blake3.to_string());
        let remote = Remote { url: &url, name, token: settings.token.as_deref() };
        download(&agent, &remote, &came, pin.size, settings.retries, watch)?;
        place.settle(&came, pin)?;
    }
    Ok(())
}

/// Asks what the hub would send, before it does.
fn check_offer(api: &Api, url: &str, revision: &str, pin: &FilePin) -> Result<(), FetchError> {
    let offer = api.metadata(url).map_err(failed)?;
    if !offer.commit_hash().eq_ignore_ascii_case(revision) {
        return Err(FetchError::Hub(format!("{url} is of another commit than {revision}")));
    }
    let found = offer.size() as u64;
    if found != pin.size {
        let problem = FileProblem::Size { expected: pin.size, found };
        return Err(FetchError::Wrong { path: pin.path.clone(), problem });
    }
    Ok(())
}

fn failed(error: ApiError) -> FetchError {
    let hint = match error.to_string() {
        text if text.contains("401") || text.contains("403") => {
            format!("{text}; a model that wants a token gets it from HF_TOKEN")
        }
        text => text,
    };
    FetchError::Hub(hint)
}
