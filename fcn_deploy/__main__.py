"""`python -m fcn_deploy` is `fcn-deploy`, also from a checkout that is not installed."""

from fcn_deploy.cli.app import main

main()
