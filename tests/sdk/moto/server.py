"""AWS for the tests: moto on a free port of loopback.

The first line on standard output is {"port": N}. Then each line of JSON on standard input is done and answered by one
line. Ends with its input.
"""

import json
import sys
import threading

import boto3
from moto import settings
from moto.core.authorization import ActionAuthenticatorMixin
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

REGION = "us-east-1"
ALLOW = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "secretsmanager:*", "Resource": "*"}],
    }
)
ANYBODY = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}],
    }
)


class Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass


class Aws:
    def __init__(self):
        self.app = DomainDispatcherApplication(create_backend_app)
        self.asked = []
        self.keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any"}
        self.server = make_server("127.0.0.1", 0, self.record, threaded=True, request_handler=Quiet)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def record(self, environ, start_response):
        """Notes what clients ask for; what this script asks for itself does not count."""
        if "boto" not in environ.get("HTTP_USER_AGENT", "").lower():
            self.asked.append(
                {
                    "method": environ["REQUEST_METHOD"],
                    "path": environ["PATH_INFO"],
                    "target": environ.get("HTTP_X_AMZ_TARGET"),
                    "metadata_token": "HTTP_X_AWS_EC2_METADATA_TOKEN" in environ,
                    "session_token": "HTTP_X_AMZ_SECURITY_TOKEN" in environ,
                }
            )
        return self.app(environ, start_response)

    def client(self, service):
        url = f"http://127.0.0.1:{self.port}"
        return boto3.client(service, region_name=REGION, endpoint_url=url, **self.keys)

    def user(self):
        """Keys that may read secrets. From then on every signature is checked."""
        iam = self.client("iam")
        iam.create_user(UserName="tester")
        iam.put_user_policy(UserName="tester", PolicyName="secrets", PolicyDocument=ALLOW)
        key = iam.create_access_key(UserName="tester")["AccessKey"]
        iam.create_role(RoleName="reader", AssumeRolePolicyDocument=ANYBODY)
        iam.put_role_policy(RoleName="reader", PolicyName="secrets", PolicyDocument=ALLOW)
        role = self.client("sts").assume_role(
            RoleArn="arn:aws:iam::123456789012:role/reader", RoleSessionName="tests"
        )["Credentials"]
        self.keys = {
            "aws_access_key_id": key["AccessKeyId"],
            "aws_secret_access_key": key["SecretAccessKey"],
        }
        ActionAuthenticatorMixin.request_count = 0
        settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
        return {
            "id": key["AccessKeyId"],
            "key": key["SecretAccessKey"],
            "role": {"id": role["AccessKeyId"], "key": role["SecretAccessKey"], "token": role["SessionToken"]},
        }

    def put(self, name, text=None, binary=None):
        """Makes the secret, or gives it another value; returns its ARN."""
        manager = self.client("secretsmanager")
        value = {"SecretString": text} if binary is None else {"SecretBinary": binary.encode()}
        try:
            return {"arn": manager.create_secret(Name=name, **value)["ARN"]}
        except manager.exceptions.ResourceExistsException:
            return {"arn": manager.put_secret_value(SecretId=name, **value)["ARN"]}

    def seen(self):
        """What clients have asked for so far."""
        return {"asked": list(self.asked)}


def main():
    aws = Aws()
    print(json.dumps({"port": aws.port}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        done = getattr(aws, order.pop("do"))(**order)
        print(json.dumps(done), flush=True)


main()
