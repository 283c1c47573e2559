"""Makes what cluster/gpu.yaml needs on AWS and writes it into the file; a second call changes your address and nothing else.

    python cluster/prepare_aws.py MY-BUCKET [--region us-west-2] [--from ADDRESS/32]

A private bucket; a firewall (security group) that lets ssh in from your address alone, and the cluster's machines in among
themselves; rights for the head (start and end machines, the bucket) and for workers (the bucket); the newest Deep Learning
Base image of AWS; a token for Ray. Needs boto3 and AWS credentials (`aws configure`). Ray on its own would open port 22 to
the world: it writes that rule into every group that it makes itself, and leaves one that is named in the file alone.
"""

import argparse
import json
import os
import re
import secrets
import sys
import time
import urllib.request
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError

FILE = Path(__file__).with_name("gpu.yaml")
GROUP = "prolu-tune"
IMAGE = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
"""Public parameter of AWS (Deep Learning AMI developer guide): driver, docker and NVIDIA's container toolkit, no framework."""
MY_ADDRESS = "https://checkip.amazonaws.com"
HEAD, WORKER = "prolu-tune-head", "prolu-tune-worker"


def main(arguments: list[str] | None = None) -> None:
    """Prepares everything and says what comes next."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bucket", help="name of the bucket for sweeps; made if it is not there")
    parser.add_argument("--region", default=None, help="default: the one in gpu.yaml")
    parser.add_argument(
        "--from", dest="source", metavar="ADDRESS/32", help="who may ssh in; default: this machine, as AWS sees it"
    )
    parser.add_argument("--image", help="machine image; default: AWS's newest Deep Learning Base image")
    parser.add_argument("--file", type=Path, default=FILE, help="the cluster file to fill in")
    chosen = parser.parse_args(arguments)
    text = chosen.file.read_text()
    region = chosen.region or re.findall(r"region: ([a-z0-9-]+)", text)[0]
    source = checked_source(chosen.source or my_address())
    session = boto3.Session(region_name=region)
    make_bucket(session, chosen.bucket, region)
    group = make_group(session, source)
    make_rights(session, chosen.bucket)
    image = chosen.image or session.client("ssm").get_parameter(Name=IMAGE)["Parameter"]["Value"]
    make_token(Path("~/.ray/auth_token").expanduser())
    chosen.file.write_text(filled(text, bucket=chosen.bucket, group=group, image=image, region=region))
    print(f"{chosen.file}: bucket {chosen.bucket}, ssh from {source}, image {image}", file=sys.stderr)
    print(f"next: ray up {chosen.file}", file=sys.stderr)


def my_address() -> str:
    """Returns this machine's address as AWS sees it, as a range of one."""
    with urllib.request.urlopen(MY_ADDRESS, timeout=20) as answer:
        return f"{answer.read().decode().strip()}/32"


def checked_source(source: str) -> str:
    """Returns the range of addresses that may ssh in, if it is not half the world."""
    network = ip_network(source, strict=False)
    if network.num_addresses > 65536:
        sys.exit(f"--from {source}: {network.num_addresses:,} addresses; give your own, such as 203.0.113.7/32")
    return str(network)


def make_bucket(session: Any, bucket: str, region: str) -> None:
    """Makes the bucket if it is not there, and shuts it to the public."""
    client = session.client("s3")
    try:
        client.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
            sys.exit(f"bucket {bucket} is not yours ({error.response['Error']['Code']}); choose another name")
        where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        client.create_bucket(Bucket=bucket, **where)
    shut = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    client.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=dict.fromkeys(shut, True))


def make_group(session: Any, source: str) -> str:
    """Returns the id of the security group, with ssh from `source` and nowhere else, and everything among its members."""
    client = session.client("ec2")
    networks = client.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not networks:
        sys.exit("this region has no default network; make one: aws ec2 create-default-vpc")
    network = networks[0]["VpcId"]
    wanted = [{"Name": "group-name", "Values": [GROUP]}, {"Name": "vpc-id", "Values": [network]}]
    found = client.describe_security_groups(Filters=wanted)["SecurityGroups"]
    if found:
        group, rules = found[0]["GroupId"], found[0]["IpPermissions"]
        if rules:
            client.revoke_security_group_ingress(GroupId=group, IpPermissions=rules)
    else:
        made = client.create_security_group(GroupName=GROUP, Description="prolu-tune: ssh from one address", VpcId=network)
        group = made["GroupId"]
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": source}]}
    among = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    client.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh, among])
    return group


def make_rights(session: Any, bucket: str) -> None:
    """Makes the two roles that the machines of the cluster play."""
    client = session.client("iam")
    try:  # what an account lacks that never had a spot machine; the head may not make it
        client.create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("InvalidInput", "EntityAlreadyExists"):
            raise
    trust = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}],
    }
    objects = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    store = [
        {"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetBucketLocation"], "Resource": f"arn:aws:s3:::{bucket}"},
        {"Effect": "Allow", "Action": objects, "Resource": f"arn:aws:s3:::{bucket}/*"},
    ]
    worker = _role(client, WORKER, trust, store)
    machines = ["ec2:Describe*", "ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances", "ec2:StopInstances"]
    head = [
        {"Effect": "Allow", "Action": machines, "Resource": "*"},
        {"Effect": "Allow", "Action": "iam:PassRole", "Resource": worker},
    ]
    _role(client, HEAD, trust, [*store, *head])


def _role(client: Any, name: str, trust: dict[str, Any], statements: list[dict[str, Any]]) -> str:
    """Returns the ARN of a role with exactly these rights, and an instance profile of the same name that holds it."""
    exists = client.exceptions.EntityAlreadyExistsException
    try:
        client.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))
    except exists:
        print(f"role {name} is there already", file=sys.stderr)
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    client.put_role_policy(RoleName=name, PolicyName="prolu-tune", PolicyDocument=policy)
    try:
        client.create_instance_profile(InstanceProfileName=name)
        client.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
        client.get_waiter("instance_profile_exists").wait(InstanceProfileName=name)
        time.sleep(0 if "AWS_ENDPOINT_URL" in os.environ else 10)  # AWS needs a while until EC2 knows of it
    except exists:
        print(f"instance profile {name} is there already", file=sys.stderr)
    return client.get_role(RoleName=name)["Role"]["Arn"]


def make_token(path: Path) -> None:
    """Makes the token that Ray asks for, if there is none, readable for its owner alone."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(secrets.token_hex(32))
    path.chmod(0o600)


def filled(text: str, *, bucket: str, group: str, image: str, region: str) -> str:
    """Returns the cluster file with everything in its place, whether it was filled in before or not."""
    for pattern, value in (
        (r"s3://[^/\s]+/prolu", f"s3://{bucket}/prolu"),
        (r"\[sg-[\w-]+\]", f"[{group}]"),
        (r"ImageId: ami-[\w-]+", f"ImageId: {image}"),
        (r"region: [a-z0-9-]+", f"region: {region}"),
    ):
        text = re.sub(pattern, value, text)
    return text


if __name__ == "__main__":
    main()
