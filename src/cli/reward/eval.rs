//! `argus reward eval`: the table of docs/verification.md.

use std::path::PathBuf;

use super::ModelOption;
use crate::{
    cli::table::{Align, Table},
    verify::reward::{
        ByDrift, CutOffs, Drift,
        evaluation::{Accepted, Report, evaluate},
    },
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Pairs that `argus reward dataset` made.
    #[arg(default_value = "pairs.jsonl")]
    dataset: PathBuf,
    #[command(flatten)]
    model: ModelOption,
    /// Print the tables as Markdown.
    #[arg(long)]
    markdown: bool,
}

pub(super) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let report = evaluate(&*args.model.open()?, &super::read_dataset(&args.dataset)?)?;
    if json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    let CutOffs { f16, bf16, lossy } = report.cut_offs;
    println!(
        "seed {}: {} same and {} different pairs that were not trained on; cut-offs {f16:.4} (f16), {bf16:.4} (bf16), \
         {lossy:.4} (lossy)\n",
        report.seed, report.same, report.different
    );
    let (accepted, areas) = (lines(&report), areas(&report));
    if args.markdown {
        println!("{}\n{}", accepted.markdown(), areas.markdown());
    } else {
        println!("{accepted}\n{areas}");
    }
    Ok(())
}

/// The share of each kind of pairs that is taken for the same, in per cent.
fn lines(report: &Report) -> Table {
    let mut table = Table::new(&[
        ("pairs", Align::Left),
        ("number", Align::Right),
        ("f16", Align::Right),
        ("bf16", Align::Right),
        ("lossy", Align::Right),
        ("hashes: f16", Align::Right),
        ("bf16", Align::Right),
        ("lossy", Align::Right),
        ("CLIP > 0.9", Align::Right),
        ("aHash ≤ 6", Align::Right),
    ]);
    for line in &report.lines {
        let Accepted { model, hashes, clip, average_hash } = line.accepted;
        let each = |of: ByDrift<f64>| Drift::ALL.map(|drift| of.of(drift));
        let shares = [each(model).as_slice(), &each(hashes), &[clip, average_hash]].concat();
        let name = if line.same { format!("same: {}", line.kind) } else { line.kind.clone() };
        let mut row = vec![name, line.pairs.to_string()];
        row.extend(shares.iter().map(|share| format!("{:.1}", share * 100.0)));
        table.row(row);
    }
    table
}

fn areas(report: &Report) -> Table {
    let mut table = Table::new(&[("rule", Align::Left), ("AUC", Align::Right)]);
    let areas = report.areas;
    for (rule, area) in [
        ("reward model", areas.model),
        ("reward model, one picture withheld", areas.withheld),
        ("XGBoost of the four hashes", areas.hashes),
        ("CLIP cosine", areas.clip),
        ("average hash", areas.average_hash),
    ] {
        table.row(vec![rule.into(), format!("{area:.4}")]);
    }
    table
}
