"""Signal path as pure functions of arrays: STFT, Mel, interaural cues, Griffin-Lim."""
