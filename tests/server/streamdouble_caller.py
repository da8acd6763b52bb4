"""A simulated call of Twilio by `streamdouble`, for tests/server/test_twilio_clients.py.

    streamdouble_caller.py URL PARAMETERS LOSS    calls with the recording MICROPHONE; prints the report as JSON

PARAMETERS are JSON. LOSS is the share of packets that never reach Twilio.
"""

import asyncio
import json
import os
import sys

from streamdouble import api
from streamdouble.chaos import Impairments
from streamdouble.session import SessionConfig


async def main() -> None:
    config = SessionConfig(custom_parameters=json.loads(sys.argv[2]), impairments=Impairments(loss=float(sys.argv[3])))
    report = await api.call(sys.argv[1], audio_path=os.environ["MICROPHONE"], config=config)
    print(json.dumps(report.to_dict()))


asyncio.run(main())
