from __future__ import annotations
from rsd.vocabulary import CallError, Profile
def initial_profile(model: str, role: str) -> Profile: return Profile()
def adapt(profile: Profile, error: CallError) -> Profile | None: return None
