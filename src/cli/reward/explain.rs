//! `argus reward explain`: why two pictures are the same answer, or not.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use argus_models::{Limits, RgbPicture};
use serde_json::{Map, Value, json};

use super::{ModelOption, files, observer::Observer};
use crate::{
    cli::table::{Align, Table},
    verify::reward::{Drift, NAMES},
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Two pictures: PNG, JPEG or WebP.
    #[arg(num_args = 2, value_names = ["PICTURE", "PICTURE"], required = true)]
    pictures: Vec<PathBuf>,
    /// The pictures are of a model that is computed in bf16, whose honest answers lie further apart.
    #[arg(long)]
    bf16: bool,
    /// One of them was JPEG of quality 95 or more.
    #[arg(long, conflicts_with = "bf16")]
    lossy: bool,
    #[command(flatten)]
    model: ModelOption,
}

fn picture(path: &Path) -> anyhow::Result<RgbPicture> {
    RgbPicture::decode(&files::read(path)?, &Limits::default()).with_context(|| path.display().to_string())
}

pub(super) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let [first, second] = args.pictures.as_slice() else { bail!("name two pictures") };
    let model = args.model.open()?;
    let observer = Observer::new(0)?;
    let (first, second) = (observer.look(picture(first)?)?, observer.look(picture(second)?)?);
    let pair = first.beside(&second).context("the pictures differ in size: they are not the same answer")?;
    let drift = match (args.lossy, args.bf16) {
        (true, _) => Drift::Lossy,
        (false, true) => Drift::Bf16,
        (false, false) => Drift::F16,
    };
    let judgement = model.judge(&pair, drift)?;
    let (contributions, average) = model.contributions(&pair)?;
    let mut order: Vec<usize> = (0..NAMES.len()).collect();
    order.sort_by(|a, b| contributions[*b].abs().total_cmp(&contributions[*a].abs()));
    if json {
        let feature = |place: &usize| {
            let value = json!({ "distance": pair.values()[*place], "log_odds": contributions[*place] });
            (NAMES[*place].to_owned(), value)
        };
        let features: Map<String, Value> = order.iter().map(feature).collect();
        println!("{}", json!({ "judgement": judgement, "average_log_odds": average, "features": features }));
        return Ok(());
    }
    let mut table =
        Table::new(&[("feature", Align::Left), ("distance", Align::Right), ("log-odds", Align::Right)]);
    for place in order {
        let (distance, adds) = (pair.values()[place], contributions[place]);
        table.row(vec![NAMES[place].into(), format!("{distance:.5}"), format!("{adds:+.3}")]);
    }
    table.row(vec!["(the average pair)".into(), String::new(), format!("{average:+.3}")]);
    println!("{table}");
    let verdict = if judgement.same { "the same" } else { "not the same" };
    println!("P(same) = {:.4}, cut-off {:.4}: {verdict}", judgement.probability, judgement.cut_off);
    Ok(())
}
