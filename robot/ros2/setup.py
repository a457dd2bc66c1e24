"""The ament_python package around `edge_vla.robot.ros2`: what `ros2 run` and `ros2 launch` look for."""

from setuptools import setup

NAME = "edge_vla_ros2"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/policy.launch.py"]),
        (f"share/{NAME}/config", ["config/policy.yaml", "config/arm.toml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    description="A quantised OpenVLA policy as a ROS 2 lifecycle node.",
    license="Apache-2.0",
    entry_points={"console_scripts": [f"policy = {NAME}.policy:main"]},
)
