"""For the codec's tests: Hypothesis without a deadline, and the modules beside them that hold no tests.

No deadline, since the time of one example depends on who else uses the machine.
"""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # aimed, laws, reference_decoder

settings.register_profile("fedpress", deadline=None)
settings.load_profile("fedpress")
