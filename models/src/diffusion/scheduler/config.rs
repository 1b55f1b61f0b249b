//! `scheduler_config.json`, as diffusers writes it, and what it comes to for one sampler.

use serde::Deserialize;

use super::{SchedulerError, SchedulerKind};

/// The most timesteps that a network is trained with.
pub(super) const MAX_TRAINED_STEPS: usize = 10_000;
/// The highest order of a multistep solver.
pub(super) const MAX_ORDER: usize = 3;

/// What the network was trained to predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Prediction {
    Epsilon,
    #[serde(rename = "v_prediction")]
    Velocity,
    #[serde(alias = "original_sample")]
    Sample,
}

/// Which of the trained timesteps a run visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Spacing {
    Leading,
    Trailing,
    Linspace,
}

/// How the latents move from one noise level to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sampler {
    Ddim,
    Ddpm,
    Lcm,
    Euler,
    EulerAncestral,
    Dpm,
    UniPc,
}

impl Sampler {
    /// Whether the noise level is counted as noise over signal, and never reaches no signal at all.
    pub(super) fn counts_sigmas(self) -> bool {
        matches!(self, Self::Euler | Self::EulerAncestral | Self::Dpm | Self::UniPc)
    }
}

/// What is solved, and for what the network's prediction is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Algorithm {
    /// `deis` is what diffusers takes for it in configs of another class.
    #[serde(rename = "dpmsolver++", alias = "deis")]
    DpmPlusPlus,
    #[serde(rename = "dpmsolver")]
    Dpm,
    #[serde(rename = "sde-dpmsolver++")]
    SdeDpmPlusPlus,
    #[serde(rename = "sde-dpmsolver")]
    SdeDpm,
}

impl Algorithm {
    pub(super) fn predicts_picture(self) -> bool {
        matches!(self, Self::DpmPlusPlus | Self::SdeDpmPlusPlus)
    }
}

/// The kind of a solver's second-order term: the first two are DPM-Solver's, the others UniPC's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SolverType {
    Midpoint,
    Heun,
    Bh1,
    Bh2,
    Logrho,
}

/// How a run's noise levels are spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SigmaSpacing {
    /// Those of the visited timesteps.
    Trained,
    Karras,
    Exponential,
    /// Even in the logarithm of signal over noise (Lu et al.).
    Lu,
}

/// The noise level after the last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FinalSigma {
    Zero,
    SigmaMin,
}

/// How much noise DDPM adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Variance {
    #[serde(alias = "fixed_small_log")]
    FixedSmall,
    FixedLarge,
    /// The network gives it beside its prediction.
    LearnedRange,
}

/// What predicted pictures are held within.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bounds {
    None,
    Fixed(f32),
    /// Scaled down to 1 from the given quantile of magnitudes, which counts up to `most`.
    Quantile {
        ratio: f64,
        most: f32,
    },
}

/// `scheduler_config.json`. What is absent has the default of the sampler that runs.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct SchedulerConfig {
    #[serde(rename = "_class_name")]
    class: String,
    num_train_timesteps: Option<usize>,
    beta_start: Option<f64>,
    beta_end: Option<f64>,
    beta_schedule: Option<String>,
    trained_betas: Option<Vec<f32>>,
    prediction_type: Option<Prediction>,
    timestep_spacing: Option<Spacing>,
    steps_offset: Option<usize>,
    set_alpha_to_one: Option<bool>,
    clip_sample: Option<bool>,
    clip_sample_range: Option<f32>,
    thresholding: Option<bool>,
    dynamic_thresholding_ratio: Option<f64>,
    sample_max_value: Option<f32>,
    rescale_betas_zero_snr: Option<bool>,
    variance_type: Option<Variance>,
    use_karras_sigmas: Option<bool>,
    use_exponential_sigmas: Option<bool>,
    use_beta_sigmas: Option<bool>,
    use_lu_lambdas: Option<bool>,
    use_flow_sigmas: Option<bool>,
    sigma_min: Option<f64>,
    sigma_max: Option<f64>,
    final_sigmas_type: Option<FinalSigma>,
    interpolation_type: Option<String>,
    timestep_type: Option<String>,
    solver_order: Option<usize>,
    algorithm_type: Option<Algorithm>,
    solver_type: Option<SolverType>,
    lower_order_final: Option<bool>,
    euler_at_final: Option<bool>,
    lambda_min_clipped: Option<f64>,
    predict_x0: Option<bool>,
    disable_corrector: Option<Vec<usize>>,
    solver_p: Option<serde_json::Value>,
    original_inference_steps: Option<usize>,
    timestep_scaling: Option<f64>,
}

/// How noise grew in training.
#[derive(Debug, Clone)]
pub(super) struct Training {
    pub(super) steps: usize,
    pub(super) beta_start: f64,
    pub(super) beta_end: f64,
    pub(super) beta_schedule: String,
    pub(super) betas: Option<Vec<f32>>,
    pub(super) rescale_to_zero_signal: bool,
}

/// The options of the multistep solvers.
#[derive(Debug, Clone)]
pub(super) struct SolverOptions {
    pub(super) order: usize,
    pub(super) algorithm: Algorithm,
    pub(super) kind: SolverType,
    pub(super) lower_order_final: bool,
    pub(super) euler_at_final: bool,
    /// UniPC's choice between predicting the picture and predicting the noise.
    pub(super) predicts_picture: bool,
    /// The steps after which UniPC does not correct.
    pub(super) uncorrected: Vec<usize>,
}

/// A config, checked for one sampler.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) sampler: Sampler,
    pub(super) training: Training,
    pub(super) prediction: Prediction,
    pub(super) spacing: Spacing,
    pub(super) offset: usize,
    pub(super) bounds: Bounds,
    /// Whether nothing but signal is left after the last step of DDIM and LCM.
    pub(super) ends_clean: bool,
    pub(super) variance: Variance,
    pub(super) sigma_spacing: SigmaSpacing,
    /// The smallest and largest noise level of Karras' and exponential spacing, where they are set.
    pub(super) sigma_range: (Option<f64>, Option<f64>),
    pub(super) final_sigma: FinalSigma,
    /// Whether timesteps between trained ones stay fractions in DPM-Solver's spacings.
    pub(super) is_cosine: bool,
    pub(super) lambda_min: f64,
    pub(super) solver: SolverOptions,
    pub(super) original_steps: usize,
    pub(super) timestep_scaling: f32,
}

impl SchedulerConfig {
    /// The sampler of the config's own class.
    fn own_sampler(&self) -> Result<Sampler, SchedulerError> {
        Ok(match self.class.as_str() {
            // PNDM has the same noise levels; DDIM is the sampler that diffusers runs with its config.
            "DDIMScheduler" | "PNDMScheduler" => Sampler::Ddim,
            "DDPMScheduler" => Sampler::Ddpm,
            "LCMScheduler" => Sampler::Lcm,
            "EulerDiscreteScheduler" => Sampler::Euler,
            "EulerAncestralDiscreteScheduler" => Sampler::EulerAncestral,
            "DPMSolverMultistepScheduler" => Sampler::Dpm,
            "UniPCMultistepScheduler" => Sampler::UniPc,
            other => return Err(SchedulerError::UnknownClass(other.to_owned())),
        })
    }

    /// What the config comes to for its own sampler, or for the one named.
    pub(super) fn settings(&self, kind: Option<SchedulerKind>) -> Result<Settings, SchedulerError> {
        use SchedulerKind as Kind;
        let own = self.own_sampler()?;
        let mut config = self.clone();
        let sampler = match kind {
            None => own,
            Some(Kind::Ddim) => Sampler::Ddim,
            Some(Kind::Ddpm) => Sampler::Ddpm,
            Some(Kind::Lcm) => Sampler::Lcm,
            Some(Kind::Euler) => Sampler::Euler,
            Some(Kind::EulerAncestral) => Sampler::EulerAncestral,
            Some(Kind::DpmMultistep | Kind::DpmMultistepKarras) => {
                config.fix_solver(Algorithm::DpmPlusPlus, kind == Some(Kind::DpmMultistepKarras))
            }
            Some(Kind::DpmMultistepSde | Kind::DpmMultistepSdeKarras) => {
                config.fix_solver(Algorithm::SdeDpmPlusPlus, kind == Some(Kind::DpmMultistepSdeKarras))
            }
            Some(Kind::UniPc | Kind::UniPcKarras) => {
                config.fix_spacing(kind == Some(Kind::UniPcKarras));
                Sampler::UniPc
            }
        };
        config.resolve(sampler, sampler == own && self.class != "PNDMScheduler")
    }

    fn fix_solver(&mut self, algorithm: Algorithm, karras: bool) -> Sampler {
        self.fix_spacing(karras);
        self.algorithm_type = Some(algorithm);
        self.solver_order = Some(2);
        Sampler::Dpm
    }

    fn fix_spacing(&mut self, karras: bool) {
        self.use_karras_sigmas = Some(karras);
        for other in [&mut self.use_exponential_sigmas, &mut self.use_beta_sigmas, &mut self.use_lu_lambdas] {
            *other = Some(false);
        }
    }

    /// `own`: whether `sampler` is that of the config's class, so that its default clipping holds.
    fn resolve(&self, sampler: Sampler, own: bool) -> Result<Settings, SchedulerError> {
        let is_lcm = sampler == Sampler::Lcm;
        let spacing = match sampler {
            Sampler::Ddim | Sampler::Ddpm | Sampler::Lcm => Spacing::Leading,
            _ => Spacing::Linspace,
        };
        let training = Training {
            steps: self.num_train_timesteps.unwrap_or(1000),
            beta_start: self.beta_start.unwrap_or(if is_lcm { 0.000_85 } else { 0.0001 }),
            beta_end: self.beta_end.unwrap_or(if is_lcm { 0.012 } else { 0.02 }),
            beta_schedule: self
                .beta_schedule
                .clone()
                .unwrap_or_else(|| if is_lcm { "scaled_linear" } else { "linear" }.to_owned()),
            betas: self.trained_betas.clone(),
            rescale_to_zero_signal: self.rescale_betas_zero_snr == Some(true),
        };
        let settings = Settings {
            sampler,
            prediction: self.prediction_type.unwrap_or(Prediction::Epsilon),
            spacing: self.timestep_spacing.unwrap_or(spacing),
            offset: self.steps_offset.unwrap_or(0),
            bounds: self.bounds(sampler, own),
            ends_clean: self.set_alpha_to_one.unwrap_or(self.class != "PNDMScheduler"),
            variance: self.variance_type.unwrap_or(Variance::FixedSmall),
            sigma_spacing: self.sigma_spacing(sampler)?,
            sigma_range: match sampler {
                Sampler::Euler | Sampler::UniPc => (self.sigma_min, self.sigma_max),
                _ => (None, None),
            },
            final_sigma: self.final_sigmas_type.unwrap_or(FinalSigma::Zero),
            is_cosine: training.beta_schedule == "squaredcos_cap_v2",
            lambda_min: self.lambda_min_clipped.unwrap_or(f64::NEG_INFINITY),
            solver: self.solver(sampler),
            original_steps: self.original_inference_steps.unwrap_or(50),
            timestep_scaling: self.timestep_scaling.unwrap_or(10.0) as f32,
            training,
        };
        self.check_options(sampler)?;
        settings.check()?;
        Ok(settings)
    }

    fn bounds(&self, sampler: Sampler, own: bool) -> Bounds {
        let clips = match sampler {
            Sampler::Ddim | Sampler::Ddpm => self.clip_sample.unwrap_or(own),
            Sampler::Lcm => self.clip_sample.unwrap_or(false),
            _ => false,
        };
        match self.thresholding == Some(true) {
            true => Bounds::Quantile {
                ratio: self.dynamic_thresholding_ratio.unwrap_or(0.995),
                most: self.sample_max_value.unwrap_or(1.0),
            },
            false if clips => Bounds::Fixed(self.clip_sample_range.unwrap_or(1.0)),
            false => Bounds::None,
        }
    }

    fn sigma_spacing(&self, sampler: Sampler) -> Result<SigmaSpacing, SchedulerError> {
        let asked = [
            (self.use_karras_sigmas, SigmaSpacing::Karras),
            (self.use_exponential_sigmas, SigmaSpacing::Exponential),
            (self.use_lu_lambdas.filter(|_| sampler == Sampler::Dpm), SigmaSpacing::Lu),
        ];
        let mut asked = asked.into_iter().filter(|(on, _)| *on == Some(true)).map(|(_, spacing)| spacing);
        match (sampler, asked.next(), asked.next()) {
            (Sampler::Euler | Sampler::Dpm | Sampler::UniPc, Some(spacing), None) => Ok(spacing),
            (Sampler::Euler | Sampler::Dpm | Sampler::UniPc, Some(_), Some(_)) => {
                Err(SchedulerError::Unsupported("several spacings of sigmas at once".to_owned()))
            }
            _ => Ok(SigmaSpacing::Trained),
        }
    }

    fn solver(&self, sampler: Sampler) -> SolverOptions {
        let kind = match (sampler, self.solver_type) {
            // As diffusers reads one solver's config for the other.
            (Sampler::UniPc, Some(SolverType::Bh1)) => SolverType::Bh1,
            (Sampler::UniPc, _) => SolverType::Bh2,
            (_, Some(SolverType::Heun)) => SolverType::Heun,
            _ => SolverType::Midpoint,
        };
        SolverOptions {
            order: self.solver_order.unwrap_or(2),
            algorithm: self.algorithm_type.unwrap_or(Algorithm::DpmPlusPlus),
            kind,
            lower_order_final: self.lower_order_final.unwrap_or(true),
            euler_at_final: self.euler_at_final.unwrap_or(false),
            predicts_picture: self.predict_x0.unwrap_or(true),
            uncorrected: self.disable_corrector.clone().unwrap_or_default(),
        }
    }

    /// Refuses options that would change the numbers in a way that is not built here.
    fn check_options(&self, sampler: Sampler) -> Result<(), SchedulerError> {
        let spaced = matches!(sampler, Sampler::Euler | Sampler::Dpm | Sampler::UniPc);
        let is_euler = sampler == Sampler::Euler;
        let other = |text: &Option<String>, usual: &str| text.as_deref().is_some_and(|text| text != usual);
        refuse(spaced && self.use_beta_sigmas == Some(true), "use_beta_sigmas")?;
        refuse(self.use_flow_sigmas == Some(true), "use_flow_sigmas")?;
        refuse(is_euler && other(&self.interpolation_type, "linear"), "interpolation_type")?;
        refuse(is_euler && other(&self.timestep_type, "discrete"), "timestep_type")?;
        refuse(
            sampler == Sampler::UniPc && self.solver_p.as_ref().is_some_and(|solver| !solver.is_null()),
            "solver_p",
        )?;
        let corrections = self.disable_corrector.as_ref().map_or(0, Vec::len);
        refuse(corrections > MAX_TRAINED_STEPS, "disable_corrector")
    }
}

fn refuse(condition: bool, option: &str) -> Result<(), SchedulerError> {
    match condition {
        true => Err(SchedulerError::Unsupported(option.to_owned())),
        false => Ok(()),
    }
}

impl Settings {
    fn check(&self) -> Result<(), SchedulerError> {
        let trained = self.training.steps;
        refuse(!(1..=MAX_TRAINED_STEPS).contains(&trained), "num_train_timesteps")?;
        refuse(
            self.training.betas.as_ref().is_some_and(|betas| betas.len() != trained),
            "trained_betas of another length than num_train_timesteps",
        )?;
        refuse(self.offset >= trained, "steps_offset")?;
        if let Bounds::Quantile { ratio, .. } = self.bounds {
            refuse(!(0.0..=1.0).contains(&ratio), "dynamic_thresholding_ratio")?;
        }
        let positive = |sigma: Option<f64>| sigma.is_none_or(|sigma| sigma.is_finite() && sigma > 0.0);
        refuse(!positive(self.sigma_range.0), "sigma_min")?;
        refuse(!positive(self.sigma_range.1), "sigma_max")?;
        refuse(
            self.training.rescale_to_zero_signal
                && !self.sampler.counts_sigmas()
                && self.prediction == Prediction::Epsilon
                && self.spacing != Spacing::Leading,
            "rescale_betas_zero_snr of a network that predicts epsilon",
        )?;
        match self.sampler {
            Sampler::Dpm => self.check_dpm(),
            Sampler::UniPc => {
                refuse(!(1..=MAX_ORDER).contains(&self.solver.order), "solver_order")?;
                refuse(
                    !self.solver.lower_order_final && self.final_sigma == FinalSigma::Zero,
                    "lower_order_final = false with a final sigma of zero",
                )
            }
            Sampler::Lcm => refuse(!(1..=trained).contains(&self.original_steps), "original_inference_steps"),
            _ => Ok(()),
        }
    }

    fn check_dpm(&self) -> Result<(), SchedulerError> {
        let solver = &self.solver;
        refuse(!(1..=MAX_ORDER).contains(&solver.order), "solver_order")?;
        refuse(solver.order == MAX_ORDER && solver.algorithm == Algorithm::SdeDpm, "solver_order")?;
        refuse(
            !solver.algorithm.predicts_picture() && self.final_sigma == FinalSigma::Zero,
            "an algorithm_type without ++ and with a final sigma of zero",
        )?;
        refuse(self.lambda_min.is_nan(), "lambda_min_clipped")
    }
}
