//! What audits do to those who cheat where comparisons see nothing.

use super::*;

/// Income of cheats whose pictures pass every comparison, per unit of an honest miner's income: below what
/// their work costs, so that honest work pays better.
#[test]
fn skipping_and_relaying_earn_less_than_they_save() {
    let cheats = [2, 5, 10, 16].map(|skipped| Habit::Skipping { skipped });
    let habits: Vec<Habit> = population(40, 0)
        .into_iter()
        .chain(cheats.into_iter().chain([Habit::Relaying, Habit::Declining]).cycle().take(18))
        .collect();
    for seed in 80..83 {
        let mut settings = settings(1200);
        // Ties, so that being fast for skipping steps brings nothing either way.
        settings.scoring.tie_ms = 60_000;
        let mut simulation = Simulation::new(seed, settings, &habits);
        simulation.run_until(simulation.end_of_period(5) + 40_000);
        let standings = simulation.core.periods().standings(TaskKind::TextToImage);
        let mean = |habit: Habit| {
            let of = simulation.miners.iter().filter(|(_, of)| **of == habit);
            let all: Vec<f64> = of.map(|(miner, _)| standings.get(miner).copied().unwrap_or(0.0)).collect();
            all.iter().sum::<f64>() / all.len() as f64
        };
        let honest = mean(Habit::Honest { mean_ms: 2_000 });
        for cheat in cheats {
            let Habit::Skipping { skipped } = cheat else { unreachable!() };
            let (income, cost) = (mean(cheat) / honest, 1.0 - f64::from(skipped) / f64::from(RUN));
            println!("seed {seed}: {skipped} of {RUN} steps skipped earn {income:.2} at a cost of {cost:.2}");
            assert!(income < cost, "seed {seed}: {cheat:?} earns {income} at a cost of {cost}");
        }
        for habit in [Habit::Relaying, Habit::Declining] {
            let relayed = mean(habit) / honest;
            println!("seed {seed}: {habit:?} earns {relayed:.2}");
            assert!(relayed < 0.2, "seed {seed}: {habit:?} earns {relayed}");
        }
        let honest_fail = |(miner, habit): (&Hotkey, &Habit)| {
            matches!(habit, Habit::Honest { .. }) && simulation.core.audits().record(miner).failed > 0
        };
        assert!(!simulation.miners.iter().any(honest_fail), "seed {seed}: an honest miner failed an audit");
        let counters = simulation.core.counters();
        assert!(counters.steps_retaken * 9 < counters.steps_audited, "{counters:?}");
        assert!(counters.audits > 500 && counters.trajectories > 300, "{counters:?}");
    }
}

#[test]
fn doubt_outlives_a_restart() {
    let mut simulation = Simulation::new(90, settings(300), &population(10, 0));
    let cheat = *simulation.miners.keys().next().unwrap();
    simulation.miners.insert(cheat, Habit::Skipping { skipped: RUN });
    simulation.run_until(simulation.end_of_period(0) + 40_000);
    assert!(simulation.core.audits().record(&cheat).doubted_for > 0);
    simulation.restart();
    simulation.run_until(simulation.now_ms + 1_000);
    assert!(simulation.core.audits().record(&cheat).doubted_for > 0, "of closed periods");
    let passed = |simulation: &Simulation| {
        simulation.miners.keys().map(|miner| simulation.core.audits().record(miner).passed).sum::<u64>()
    };
    assert!(passed(&simulation) > 0);
}
