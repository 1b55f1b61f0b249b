//! What a trajectory audit shows: whether the states that a miner opened are those of the run that was asked
//! for, up to what hardware does to floating point.
//!
//! Models whose honest answers agree to the bit have [`Tolerances::exact`]. The others' default is an estimate:
//! see `docs/verification.md` for how it was come by and what passes below it.

use argus_models::{
    diffusion::{Audited, Deviation},
    registry::{Numerics, Precision},
};
use argus_protocols::trajectory::OpeningError;

/// How far a state may be from what follows from the one before it.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tolerances {
    /// Of the first state from the seed's noise or the request's picture, as a share of its length.
    pub start: f32,
    /// Of the state after a step, as a share of how far the step moves the latents.
    pub step: f32,
    /// Of the picture sent from the one that the last state makes: mean absolute difference of samples, in
    /// levels of 255.
    pub picture: f32,
}

/// Those of each number format that models are computed in.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceTolerances {
    /// Of f32 on devices as well.
    pub f16: Tolerances,
    pub bf16: Tolerances,
}

impl Default for DeviceTolerances {
    fn default() -> Self {
        Self { f16: Tolerances::F16, bf16: Tolerances::BF16 }
    }
}

impl DeviceTolerances {
    /// What is allowed to honest answers of a model.
    pub fn of(&self, numerics: Numerics) -> Tolerances {
        match numerics.dtype {
            _ if numerics.is_exact() => Tolerances::exact(),
            Precision::F32 | Precision::F16 => self.f16,
            Precision::Bf16 => self.bf16,
        }
    }

    /// What is wrong with these settings, as a sentence that says what to do.
    pub fn validate(&self) -> Result<(), String> {
        self.f16.validate().and_then(|()| self.bf16.validate())
    }
}

impl Default for Tolerances {
    fn default() -> Self {
        Self::F16
    }
}

impl Tolerances {
    pub const F16: Self = Self { start: 0.01, step: 0.012, picture: 0.8 };
    pub const BF16: Self = Self { start: 0.02, step: 0.08, picture: 0.8 };

    /// Equality to the bit.
    pub const fn exact() -> Self {
        Self { start: 0.0, step: 0.0, picture: 0.0 }
    }

    /// What is wrong with these settings, as a sentence that says what to do.
    pub fn validate(&self) -> Result<(), String> {
        for (name, value) in [("start", self.start), ("step", self.step), ("picture", self.picture)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(format!("tolerances.{name} is {value}: give a number, 0 or more"));
            }
        }
        Ok(())
    }
}

/// What an audit by trajectory came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// What was opened is of the run that was asked for.
    Sound,
    /// It is not; a label that says what is wrong.
    False(&'static str),
    /// The miner did not open what it committed to.
    Unopened,
}

impl From<OpeningError> for Finding {
    fn from(error: OpeningError) -> Self {
        Finding::False(error.reason())
    }
}

impl Finding {
    /// Holds what the engine found against tolerances.
    pub fn of(audited: &Audited, tolerances: &Tolerances) -> Self {
        let found = match audited {
            Audited::Unfit(_) => return Finding::False("unfit_states"),
            Audited::Checked(found) => found,
        };
        // Written so that nothing that is not a number passes.
        let within = |deviation: Deviation, most: f32| deviation.0 <= most;
        if !within(found.start, tolerances.start) {
            Finding::False("another_start")
        } else if !found.steps.iter().all(|(_, deviation)| within(*deviation, tolerances.step)) {
            Finding::False("another_step")
        } else if found.picture <= f64::from(tolerances.picture) {
            Finding::Sound
        } else {
            Finding::False("another_picture")
        }
    }
}

#[cfg(test)]
mod tests {
    use argus_models::{diffusion::Deviations, registry::Attention};

    use super::*;

    fn found(start: f32, step: f32, picture: f64, tolerances: Tolerances) -> Finding {
        let steps = vec![(0, Deviation::NONE), (4, Deviation(step))];
        Finding::of(&Audited::Checked(Deviations { start: Deviation(start), steps, picture }), &tolerances)
    }

    #[test]
    fn where_honest_devices_agree_to_the_bit_nothing_else_passes() {
        let exact = Tolerances::exact();
        assert_eq!(found(0.0, 0.0, 0.0, exact), Finding::Sound);
        assert_eq!(found(f32::MIN_POSITIVE, 0.0, 0.0, exact), Finding::False("another_start"));
        assert_eq!(found(0.0, f32::MIN_POSITIVE, 0.0, exact), Finding::False("another_step"));
        assert_eq!(found(0.0, 0.0, 0.001, exact), Finding::False("another_picture"));
    }

    #[test]
    fn elsewhere_drift_passes_and_what_is_no_number_never_does() {
        let device = Tolerances::default();
        let Tolerances { start, step, picture } = device;
        assert_eq!(found(start, step, picture.into(), device), Finding::Sound);
        assert_eq!(found(0.0, 1.1 * step, 0.0, device), Finding::False("another_step"));
        for odd in [f32::NAN, f32::INFINITY] {
            assert_eq!(found(odd, 0.0, 0.0, device), Finding::False("another_start"));
            assert_eq!(found(0.0, odd, 0.0, device), Finding::False("another_step"));
            assert_eq!(found(0.0, 0.0, odd.into(), device), Finding::False("another_picture"));
        }
        assert_eq!(Finding::of(&Audited::Unfit("short"), &device), Finding::False("unfit_states"));
    }

    #[test]
    fn each_format_has_its_own_and_portable_f32_none() {
        let all = DeviceTolerances::default();
        assert_eq!(all.of(Numerics::PORTABLE_F32), Tolerances::exact());
        assert_eq!(all.of(Numerics::DEVICE_F16), Tolerances::F16);
        assert_eq!(all.of(Numerics::DEVICE_BF16), Tolerances::BF16);
        let f32_on_a_device = Numerics { attention: Attention::Device, ..Numerics::PORTABLE_F32 };
        assert_eq!(all.of(f32_on_a_device), Tolerances::F16);
        assert!(all.validate().is_ok());
    }

    #[test]
    fn settings_that_let_everything_pass_are_refused() {
        assert!(Tolerances::default().validate().is_ok() && Tolerances::exact().validate().is_ok());
        for wrong in [f32::NAN, f32::INFINITY, -1.0] {
            assert!(Tolerances { step: wrong, ..Tolerances::default() }.validate().is_err());
        }
    }
}
