//! The studio in a real browser: a prompt typed, steps watched, the picture seen; errors, markup in prompts,
//! what survives a reload, and a phone's width.

use std::sync::atomic::Ordering;

use argus::gateway::keys::{Credits, NewKey};
use serde_json::{Value, json};

use super::{
    Running,
    browser::{self, Browser},
    service, start, until,
};

/// A browser, or nothing where none is installed. On the project's own machines one must be.
pub async fn open_browser() -> Option<Browser> {
    match browser::find() {
        Some(program) => Some(Browser::start(program).await),
        None if std::env::var("CI").is_ok_and(|ci| ci == "true") => {
            panic!("CI must have Chromium: apt-get install chromium")
        }
        None => {
            eprintln!(
                "SKIPPED: no Chromium on this machine (apt-get install chromium, or set ARGUS_CHROMIUM)"
            );
            None
        }
    }
}

pub async fn finished(browser: &mut Browser) {
    browser
        .until("document.getElementById('running').hidden && !document.getElementById('about').hidden")
        .await;
}

/// Opens the studio with the test's key, as a link from `argus devnet` does.
pub async fn enter(browser: &mut Browser, running: &Running) {
    browser.open(&running.url(&format!("/#key={}", running.key))).await;
}

#[tokio::test]
async fn a_prompt_is_typed_and_the_picture_is_seen_coming() {
    let Some(mut browser) = open_browser().await else { return };
    let running = start().await;
    browser.open(&running.url("/")).await;
    browser.width(1280).await;
    assert_eq!(browser.text("key-summary").await, "Add a key");

    // Without a key the studio asks for one, says when it is wrong, and goes on by itself with a good one.
    browser.type_into("prompt", service::GATED).await;
    browser.press("Enter", 13, true).await;
    browser.until("document.getElementById('key-dialog').open").await;
    browser.type_into("key", "argus-0000").await;
    browser.press("Enter", 13, false).await;
    browser.click("key-save").await;
    browser.until("document.getElementById('key-state').textContent.includes('not known')").await;
    browser.type_into("key", &running.key).await;
    browser.click("key-save").await;
    browser.until("!document.getElementById('key-dialog').open").await;

    browser.until("!document.getElementById('running').hidden").await;
    browser.until("document.getElementById('phase').textContent === 'In the queue, 1 before you'").await;
    for step in 1..=3 {
        running.local.steps.add_permits(1);
        browser.until(&format!("document.getElementById('phase').textContent === 'Step {step} of 4'")).await;
        let now = browser.eval("document.getElementById('bar').getAttribute('aria-valuenow')").await;
        assert_eq!(now, (step * 25).to_string());
    }
    running.local.steps.add_permits(1);
    finished(&mut browser).await;

    let shown = "document.querySelector('#tiles img')";
    browser.until(&format!("{shown}.complete && {shown}.naturalWidth === 128")).await;
    assert_eq!(browser.eval(&format!("{shown}.alt")).await, service::GATED);
    let facts = browser.text("about-facts").await;
    let seed = running.local.pictures()[0].seed.to_string();
    for fact in ["local-disc", "128 × 128", &seed, &running.local.miner.to_string()[..6]] {
        assert!(facts.contains(fact), "{fact} is not in {facts}");
    }
    let file = browser.eval("document.getElementById('download').download").await;
    assert!(file.as_str().unwrap().ends_with(&format!("{seed}.png")), "{file}");
    browser.until("document.querySelectorAll('#thumbs li').length === 1").await;
    browser.until("document.getElementById('key-summary').textContent === 'test'").await;
    assert_eq!(browser.eval("document.querySelectorAll('#miners tr').length").await, 4);
    assert_eq!(browser.errors, Vec::<String>::new());
}

#[tokio::test]
async fn what_is_kept_survives_a_reload_and_can_be_removed() {
    let Some(mut browser) = open_browser().await else { return };
    let running = start().await;
    enter(&mut browser, &running).await;
    assert_eq!(browser.eval("location.hash").await, "", "the key must not stay in the address");
    browser.click("count-more").await;
    browser.type_into("prompt", "two discs").await;
    browser.click("make").await;
    finished(&mut browser).await;
    browser.until("document.querySelectorAll('#thumbs li').length === 2").await;
    assert_eq!(browser.eval("document.querySelectorAll('#tiles img').length").await, 2);

    browser.open(&running.url("/?again")).await;
    browser.until("document.querySelectorAll('#thumbs li').length === 2").await;
    assert_eq!(browser.text("count").await, "2");
    browser.eval("document.querySelector('#thumbs button').click()").await;
    browser.until("document.getElementById('about-prompt').textContent === 'two discs'").await;
    browser.click("reuse").await;
    assert_eq!(browser.eval("document.getElementById('prompt').value").await, "two discs");
    browser.click("remove").await;
    browser.until("document.querySelectorAll('#thumbs li').length === 1").await;
    browser.eval("window.confirm = () => true").await;
    browser.click("gallery-clear").await;
    browser.until("document.querySelectorAll('#thumbs li').length === 0").await;
    assert_eq!(browser.errors, Vec::<String>::new());
}

#[tokio::test]
async fn trouble_is_explained() {
    let Some(mut browser) = open_browser().await else { return };
    let running = start().await;
    enter(&mut browser, &running).await;
    let title = async |browser: &mut Browser, text: &str| {
        browser.until(&format!("document.getElementById('trouble-title').textContent === '{text}'")).await;
    };
    // No capacity: counts down and tries again by itself.
    browser.type_into("prompt", service::BUSY).await;
    browser.click("make").await;
    title(&mut browser, "Every miner is busy").await;
    browser.until("/Trying again in [67] s/.test(document.getElementById('trouble-act').textContent)").await;
    browser.until("/Trying again in [1-5] s/.test(document.getElementById('trouble-act').textContent)").await;
    until("it asks again", || running.local.pictures().len() >= 2).await;
    browser.until("!document.getElementById('trouble').hidden").await;
    browser.click("trouble-close").await;
    assert_eq!(browser.eval("document.getElementById('trouble').hidden").await, true);

    browser.type_into("prompt", service::NUDE).await;
    browser.click("make").await;
    title(&mut browser, "This one stays hidden").await;

    // Stopped by a person: the work is cancelled.
    let before = running.local.cancelled.load(Ordering::SeqCst);
    browser.type_into("prompt", service::FOREVER).await;
    browser.click("make").await;
    until("it runs", || running.local.running.load(Ordering::SeqCst) == 1).await;
    browser.click("stop").await;
    until("it is cancelled", || running.local.cancelled.load(Ordering::SeqCst) == before + 1).await;
    browser.until("document.getElementById('running').hidden").await;

    // No credit, and a key that was revoked.
    let new = NewKey { credits: Some(Credits(500)), ..NewKey::named("half a picture") };
    let poor = running.gateway.ledger.create(new).unwrap();
    browser.open(&running.url(&format!("/?poor#key={}", poor.key))).await;
    assert_eq!(browser.text("key-summary").await, "0.5 credits");
    browser.click("make").await;
    title(&mut browser, "No credits left").await;
    running.gateway.ledger.revoke(&poor.view.id).unwrap();
    browser.click("make").await;
    title(&mut browser, "The key does not open this node").await;
    assert_eq!(browser.text("trouble-act").await, "Change the key");

    // A node that is gone.
    let Running { gateway, shutdown, .. } = running;
    shutdown.cancel();
    gateway.task.await.unwrap();
    browser.click("make").await;
    title(&mut browser, "The node is away").await;
    assert_eq!(browser.errors, Vec::<String>::new());
}

#[tokio::test]
async fn markup_in_a_prompt_stays_text() {
    let Some(mut browser) = open_browser().await else { return };
    let running = start().await;
    enter(&mut browser, &running).await;
    let prompt = "<img src=x onerror=\"window.hacked=1\"><script>window.hacked=1</script>\"' &amp;";
    browser.type_into("prompt", prompt).await;
    browser.click("make").await;
    finished(&mut browser).await;
    browser.until("document.querySelectorAll('#thumbs li').length === 1").await;
    assert_eq!(browser.text("about-prompt").await, prompt);
    assert_eq!(browser.eval("document.querySelector('#thumbs span').textContent").await, prompt);
    assert_eq!(browser.eval("document.querySelectorAll('[onerror], body script').length").await, 0);
    assert_eq!(browser.eval("typeof window.hacked").await, "undefined");
    // And should markup ever get in, the policy keeps it from running.
    let inject = "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked=1\">');
        const s = document.createElement('script'); s.textContent = 'window.hacked=1'; document.body.append(s);";
    browser.eval(&format!("{{ {inject} }}")).await;
    browser.until("[...document.images].at(-1).complete").await;
    assert_eq!(browser.eval("typeof window.hacked").await, "undefined");
    assert!(!browser.errors.is_empty(), "the browser reports what the policy blocked");
}

#[tokio::test]
async fn it_fits_a_phone_and_works_without_a_mouse() {
    let Some(mut browser) = open_browser().await else { return };
    let running = start().await;
    browser.width(360).await;
    enter(&mut browser, &running).await;
    for theme in ["light", "dark"] {
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": theme }] });
        browser.call("Emulation.setEmulatedMedia", media).await;
        assert!(browser.eval("document.documentElement.scrollWidth").await.as_u64().unwrap() <= 360);
        let contrast = browser.eval(CONTRAST).await.as_f64().unwrap();
        assert!(contrast >= 4.5, "{theme}: {contrast}");
    }
    browser.eval("document.getElementById('settings').open = true").await;
    assert!(browser.eval("document.documentElement.scrollWidth").await.as_u64().unwrap() <= 360);
    // Every control has a name, and the keyboard reaches it.
    assert_eq!(browser.eval(NAMELESS).await, json!([]));
    browser.eval("document.getElementById('prompt').blur()").await;
    let mut reached = Vec::new();
    for _ in 0..40 {
        browser.press("Tab", 9, false).await;
        let id = browser.eval("document.activeElement?.id ?? ''").await;
        reached.push(id);
    }
    for id in ["theme", "key-open", "prompt", "model", "count-more", "negative", "steps", "guidance", "make"]
    {
        assert!(reached.contains(&Value::from(id)), "{id} is not in {reached:?}");
    }
    browser.type_into("prompt", "by keyboard").await;
    browser.press("Enter", 13, true).await;
    finished(&mut browser).await;
    assert!(browser.eval("document.documentElement.scrollWidth").await.as_u64().unwrap() <= 360);
    assert_eq!(browser.errors, Vec::<String>::new());
}

/// The least contrast of text that matters with what is behind it (WCAG 2).
const CONTRAST: &str = "(() => {
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = numbers(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const ids = ['network-hint', 'gallery-none', 'key-summary', 'prompt-hint', 'prompt', 'negative', 'seed-hint'];
  return Math.min(...ids.map((id) => {
    const element = document.getElementById(id);
    const [a, b] = [luminance(numbers(getComputedStyle(element).color)), luminance(behind(element))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }));
})()";

/// Controls without a name that a screen reader could say.
pub const NAMELESS: &str = "[...document.querySelectorAll('button, input, select, textarea, a')].filter((e) =>
  !e.getAttribute('aria-label') && !e.textContent.trim() && !(e.labels?.length > 0)).map((e) => e.id || e.outerHTML)";

#[tokio::test]
async fn its_files_are_served_with_a_strict_policy() {
    let running = start().await;
    let page = running.get("/").send().await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let html = page.text().await.unwrap();
    assert!(!html.contains("<style") && !html.contains(" style=") && !html.contains("onclick"));
    let mut files = 0;
    for path in html.split('"').filter(|text| text.starts_with("/studio/")) {
        let response = running.get(path).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let tag = response.headers()["etag"].clone();
        let again = running.get(path).header("if-none-match", tag).send().await.unwrap();
        assert_eq!(again.status(), 304, "{path}");
        files += 1;
    }
    assert!(files >= 3);
    assert_eq!(running.get("/studio/../keys").send().await.unwrap().status(), 404);
}
