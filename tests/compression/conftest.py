"""For the codec's tests: the modules beside them that hold no tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # aimed, laws, reference_decoder
